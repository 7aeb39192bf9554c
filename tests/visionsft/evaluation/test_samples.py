"""Samples read back from a run, and which runs can't be compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from visionsft.errors import RunError
from visionsft.evaluation.samples import check_comparable, read_samples
from visionsft.runs import Run

WriteRun = Callable[..., Run]
CONFUSIONS = np.arange(12).reshape(3, 2, 2)


def test_samples_are_read_in_the_order_of_their_ids(write_run: WriteRun) -> None:
    run = write_run("run", CONFUSIONS, ids=["b", "c", "a"], groups=["x", "y", "z"])
    samples = read_samples(run, "test")
    assert (samples.ids, samples.groups, samples.positions) == (("a", "b", "c"), ("z", "x", "y"), (2, 0, 1))
    assert np.array_equal(samples.confusions, CONFUSIONS[[2, 0, 1]])


def test_a_damaged_file_is_named(write_run: WriteRun) -> None:
    run = write_run("run", CONFUSIONS)
    (run.path / "evaluation" / "test" / "per_sample.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(RunError, match=r"per_sample\.npz: can't be read"):
        read_samples(run, "test")
    with pytest.raises(RunError, match=r"no scores of split 'val'; `visionsft evaluate .* --split val`"):
        read_samples(run, "val")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"classes": ["road", "cart"]},
            r"different classes: 1 \(car\) only in .*first; 1 \(cart\) only in .*second",
        ),
        ({"classes": ["car", "road"]}, "different classes: the same ones in another order"),
        (
            {"ids": ["0000.png", "0001.png", "x.png"]},
            r"same samples: 1 \(0002.png\) only in .*; 1 \(x.png\) only in",
        ),
        ({"groups": ["drive0", "drive1", "drive0"]}, r"group the samples differently, in 1 \(0002.png\)"),
        ({"confusions": CONFUSIONS + 1}, r"other labels in 3 \(0000.png, 0001.png, 0002.png\)"),
    ],
)
def test_what_is_not_compared(write_run: WriteRun, changed: dict, said: str) -> None:
    first = write_run("first", CONFUSIONS)
    second = write_run("second", changed.pop("confusions", CONFUSIONS), **changed)
    with pytest.raises(RunError, match=said):
        check_comparable(read_samples(first, "test"), read_samples(second, "test"))


def test_many_names_are_counted(write_run: WriteRun) -> None:
    first = write_run("first", np.repeat(CONFUSIONS, 4, axis=0))
    second = write_run("second", CONFUSIONS)
    with pytest.raises(RunError, match=r"9 \(0003.png, .*0007.png, and 4 more\) only in"):
        check_comparable(read_samples(first, "test"), read_samples(second, "test"))
