"""Errors: what is wrong with the user's data, in words that name the file and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, TypeVar

Parsed = TypeVar("Parsed")


class DataError(ValueError):
    """Data that can't be used as asked: the message names the file, what was found and what is allowed."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        # torch re-raises a loader worker's error with the worker's whole traceback as message
        super().__init__(message.rpartition(f"{__name__}.DataError: ")[2].strip())


_gathered: ContextVar[list[str] | None] = ContextVar("gathered", default=None)


@contextmanager
def gather() -> Iterator[list[str]]:
    """Inside of it a broken record of a label file is noted in the list, and left out; outside it stops the reading."""
    found: list[str] = []
    token = _gathered.set(found)
    try:
        yield found
    finally:
        _gathered.reset(token)


@contextmanager
def one_record() -> Iterator[None]:
    """Around the reading of one record (a line, an object) that may be broken; see `gather`."""
    try:
        yield
    except DataError as error:
        found = _gathered.get()
        if found is None:
            raise
        found.append(str(error))


def parse_each(parse: Callable[..., Parsed], records: Iterable[tuple[object, ...]]) -> list[Parsed]:
    """`parse(*record)` of every record; see `gather`."""
    found = []
    for record in records:
        with one_record():
            found.append(parse(*record))
    return found
