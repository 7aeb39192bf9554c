"""The operating point read back from a run, its rule, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from visionsft.errors import RunError
from visionsft.evaluation.details import Details
from visionsft.evaluation.metrics import confusion_matrix, summarise
from visionsft.evaluation.operating import AppliedPoint, describe_owner, find_point, read_point
from visionsft.runs import Run

NAMES = ("Sky", "Road", "Pedestrian")


@pytest.fixture
def run(mirror_run: Callable[..., Run]) -> Run:
    """With thresholds of two classes, in another order than the classes'."""
    run = mirror_run(NAMES)
    rows = [{"class": "Pedestrian", "threshold": 0.1}, {"class": "Sky", "threshold": 0.7}]
    run.write_json("thresholds.json", {"rule": "r", "temperature": 2.0, "thresholds": rows,
                                       **describe_owner(run, "best")})  # fmt: skip
    return run


def test_it_is_read_in_the_order_of_the_rule(run: Run) -> None:
    point = read_point(run, NAMES)
    assert point.thresholds == ((2, 0.1), (0, 0.7))
    assert (point.temperature, point.rule) == (2.0, "r")
    assert point.by_class(0.3) == [0.7, 0.3, 0.1]
    assert point.as_dict()["thresholds"] == {"Pedestrian": 0.1, "Sky": 0.7}


def test_the_rule_is_that_of_the_probabilities_with_its_temperature(run: Run) -> None:
    logits = 3 * torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    chances = (logits / 2.0).softmax(1)[0]
    wanted = torch.ones(20, 20, dtype=torch.uint8)  # the only class without a threshold
    wanted[chances[0] >= 0.7] = 0
    wanted[chances[2] >= 0.1] = 2
    assert torch.equal(read_point(run, NAMES).decide(logits)[0], wanted)


def test_of_another_checkpoint_or_views_it_is_refused(run: Run) -> None:
    before = run.checkpoint("best").read_bytes()
    torch.save({"trained": "on"}, run.checkpoint("best"))
    with pytest.raises(RunError, match=r"another checkpoint than best.ckpt as it is now; .* anew"):
        read_point(run, NAMES)
    with pytest.warns(UserWarning, match="another checkpoint.*its price isn't shown"):
        assert find_point(run, NAMES, "best") is None
    run.checkpoint("best").write_bytes(before)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("symmetry: none", "symmetry: left_right"))
    with pytest.raises(RunError, match="with other inference views"):
        read_point(Run.open(run.path), NAMES)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"thresholds": [1]}', '{"thresholds": {"Sky": "x"}, "rule": "r"}', "\udcff"]
)
def test_a_damaged_file_is_named(run: Run, text: str) -> None:
    (run.path / "thresholds.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"thresholds\.json: can't be read .*chooses it on validation"):
        read_point(run, NAMES)


def test_classes_and_temperatures_that_can_not_be(run: Run) -> None:
    with pytest.raises(RunError, match="can't be read"):
        read_point(run, ("Sky", "Road", "Car"))
    stored = run.read_json("thresholds.json")
    run.write_json("thresholds.json", {**stored, "temperature": 0})
    with pytest.raises(RunError, match=r"can't be read .*temperature 0"):
        read_point(run, NAMES)
    (run.path / "thresholds.json").unlink()
    assert find_point(run, NAMES, "best") is None
    with pytest.raises(RunError, match="has no operating point; `visionsft thresholds"):
        read_point(run, NAMES)


def test_its_price_on_maps_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 30, 30, generator=generator)
    masks = torch.randint(0, 3, (2, 30, 30), generator=generator)
    point = AppliedPoint(((2, 0.25),), NAMES, "r", 1.0, "0")
    details = Details(3, temperature=None, with_boundaries=False, point=point)
    details.add(logits, logits.argmax(1).to(torch.uint8), masks)
    plain = summarise(confusion_matrix(logits.argmax(1), masks, 3), NAMES)
    price = details.price(plain)
    assert price is not None
    given, truth = point.decide(logits).ravel().numpy(), masks.ravel().numpy()
    for prediction, place in ((logits.argmax(1).ravel().numpy(), 0), (given, 1)):
        for metric in ("recall", "precision", "f1"):
            found = [getattr(row, metric)[place] for row in price.per_class]
            wanted = getattr(sk, f"{metric}_score")(truth, prediction, average=None)
            assert found == pytest.approx(wanted)
    assert [row.threshold for row in price.per_class] == [None, None, 0.25]
    assert "most probable class -> rule" in price.lines()[0]
    assert price.as_dict()["per_class"][2]["recall"] == [pytest.approx(v) for v in price.per_class[2].recall]


def test_without_one_nothing_is_counted() -> None:
    details = Details(3, temperature=None, with_boundaries=False)
    assert details.price(summarise(np.eye(3, dtype=np.int64), NAMES)) is None
    assert not math.isnan(summarise(np.eye(3, dtype=np.int64), NAMES).mean_iou)
