"""Wording: lists of names as messages say them."""

from __future__ import annotations

from collections.abc import Sequence

_FEW = 5
"""Names said of many."""


def say_some(names: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    more = f", and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{len(names)} ({', '.join(names[:_FEW])}{more})"
