"""The errors a user of `backbones` can cause; both end a command with exit code 2."""

from __future__ import annotations


class BackboneError(ValueError):
    """A wrong model name, or a model, size, band list or stage that cannot be used as asked."""

    exit_code = 2


class WeightsError(ValueError):
    """Weights that cannot be found, read safely, or fitted to the model."""

    exit_code = 2
