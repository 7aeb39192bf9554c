"""The error tree, and the nearest match in its messages."""

from __future__ import annotations

import pytest

from visionsft.errors import ConfigError, RunError, WriteError, first_line, nearest


@pytest.mark.parametrize(
    ("error", "builtin"), [(ConfigError, ValueError), (RunError, ValueError), (WriteError, OSError)]
)
def test_an_error_refines_a_builtin_and_names_its_exit_code(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)
    assert error.exit_code == 2  # type: ignore[attr-defined]
    assert str(error("runs/demo: no such folder")) == "runs/demo: no such folder"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("batchsize", "batch_size"),
        ("BATCH_SIZE", "batch_size"),
        ("epoch", "epochs"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest(given: str, match: str | None) -> None:
    assert nearest(given, ["batch_size", "epochs", "lr"]) == match


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("one\ntwo"), "one"), (MemoryError(), "MemoryError"), (KeyError("a"), "'a'")]
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
