"""The errors that a user's input can cause: the command line prints their text and ends with `exit_code`.

The other packages have their own (``backbones.BackboneError``, ``datamodules.DataError``...); what they
share is the class attribute ``exit_code``, so that nobody has to import anybody else's errors.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ConfigError", "ConversionError", "RunError", "TrainingError", "WriteError", "first_line", "nearest"]


class ConfigError(ValueError):
    """The configuration has mistakes; the text has one line a mistake."""

    exit_code = 2


class RunError(ValueError):
    """A run folder is missing, incomplete or in the way."""

    exit_code = 2


class ConversionError(ValueError):
    """A model can't be turned into another format, or gives other results there."""

    exit_code = 2


class TrainingError(ArithmeticError):
    """Training can't go on: the loss is no longer a number."""

    exit_code = 2


class WriteError(OSError):
    """A file can't be written: the disk is full, or the folder is read-only."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Of an error's text, or its name where it has none: enough to be part of another message."""
    return (str(error) or type(error).__name__).splitlines()[0]


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The name in `allowed` that `given` was most likely meant to be."""
    from difflib import get_close_matches  # only needed once something is wrong

    by_lower = {name.lower(): name for name in allowed}
    matches = get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None
