"""Errors: what is wrong with the user's data, in words that name the file and what is allowed."""

from __future__ import annotations

from typing import ClassVar


class DataError(ValueError):
    """Data that can't be used as asked: the message names the file, what was found and what is allowed."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        # torch re-raises a loader worker's error with the worker's whole traceback as message
        super().__init__(message.rpartition(f"{__name__}.DataError: ")[2].strip())
