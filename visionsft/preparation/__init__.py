"""Preparation: what happens to data before training."""

from __future__ import annotations

from visionsft.preparation import sampledata

__all__ = ["sampledata"]
