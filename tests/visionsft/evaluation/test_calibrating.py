"""Calibrating a run: what is fitted on which split, and for which checkpoint and views it holds."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from datamodules import DataError
from visionsft.errors import RunError
from visionsft.evaluation.calibrating import calibrate
from visionsft.evaluation.temperature import load_temperature, read_temperature
from visionsft.files import sha256
from visionsft.runs import Run

NAMES = ("a", "b", "c")


def draw(*, sharpness: float, seed: int, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels are drawn from their logits, which are then made so many times as sharp."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        logits = 1.5 * torch.randn(2, 3, 40, 50, generator=generator)
        chances = logits.softmax(1).movedim(1, -1).reshape(-1, 3)
        mask = torch.multinomial(chances, 1, generator=generator).reshape(2, 40, 50)
        mask[:, :5] = 255
        batches.append((sharpness * logits, mask))
    return batches


@pytest.fixture
def run(mirror_run: Callable[..., Run]) -> Run:
    """Too sharp by 2 on val and by 4 on test."""
    return mirror_run(NAMES, val=draw(sharpness=2.0, seed=0), test=draw(sharpness=4.0, seed=1))


def test_it_is_fitted_on_val_and_measured_on_test(run: Run) -> None:
    calibration = calibrate(run)
    assert calibration.temperature.value == pytest.approx(2.0, rel=0.05)  # by test alone it would be 4
    written = json.loads((run.path / "calibration.json").read_text())
    assert written["temperature"] == calibration.temperature.value
    assert written["fitted_on"] == {
        "split": "val",
        "pixels": 3 * 2 * 35 * 50,
        "of": 3 * 2 * 35 * 50,
        "seed": 0,
    }
    assert written["checkpoint"]["sha256"] == sha256(run.checkpoint("best"))
    for split in ("val", "test"):
        before, after = (written["measured"][split][name] for name in ("before", "after"))
        assert all(after[key] < before[key] for key in ("nll", "ece", "ece_equal_mass"))
    assert written["measured"]["val"]["after"]["ece"] < 0.01 < written["measured"]["test"]["after"]["ece"]
    assert (
        f"temperature {calibration.temperature.value:.4f}, fitted on 10,500 of 10,500" in calibration.table()
    )
    assert load_temperature(run) == calibration.temperature.value


def test_no_temperature_is_said_and_is_one(run: Run) -> None:
    with pytest.warns(UserWarning, match="no temperature for best.ckpt.*visionsft calibrate"):
        assert load_temperature(run) == 1.0
    assert read_temperature(run) is None


def test_it_holds_for_one_checkpoint_and_one_set_of_views(run: Run) -> None:
    calibrate(run)
    before = run.checkpoint("best").read_bytes()
    torch.save({"trained": "on"}, run.checkpoint("best"))
    with pytest.warns(UserWarning, match="another checkpoint than best.ckpt"):
        assert read_temperature(run) is None
    run.checkpoint("best").write_bytes(before)
    assert read_temperature(run) is not None
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("symmetry: none", "symmetry: left_right"))
    with pytest.warns(UserWarning, match="other inference views"):
        assert read_temperature(Run.open(run.path)) is None


def test_without_a_test_split_nothing_is_measured_there(mirror_run: Callable[..., Run]) -> None:
    calibration = calibrate(mirror_run(NAMES, val=draw(sharpness=1.0, seed=0)))
    assert calibration.temperature.measured["test"] is None
    assert "has no labelled samples" in calibration.table()


def test_a_model_without_mistakes_is_said_to_end_at_the_limit(mirror_run: Callable[..., Run]) -> None:
    mask = torch.arange(3).repeat(4).reshape(1, 3, 4)
    logits = torch.nn.functional.one_hot(mask).movedim(-1, 1).float()
    assert "the end of the range" in calibrate(mirror_run(NAMES, val=[(logits, mask)])).table()


def test_mistakes_are_named(mirror_run: Callable[..., Run]) -> None:
    run = mirror_run(NAMES, test=draw(sharpness=1.0, seed=0))
    with pytest.raises(DataError, match="split 'val' has no samples"):
        calibrate(run)
    (run.path / "calibration.json").write_text("{}")
    with pytest.raises(RunError, match=r"calibration\.json: can't be read .*writes it anew"):
        load_temperature(run)


def test_a_val_split_without_labels_is_refused(mirror_run: Callable[..., Run]) -> None:
    unlabelled = [(logits, torch.full_like(mask, 255)) for logits, mask in draw(sharpness=1.0, seed=0)]
    with pytest.raises(DataError, match="no pixel of the val split is labelled"):
        calibrate(mirror_run(NAMES, val=unlabelled))
