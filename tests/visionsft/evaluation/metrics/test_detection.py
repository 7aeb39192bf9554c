"""Average precision against pycocotools, on made-up boxes with ties, crowds, empty images and absent classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from datamodules.objects import Target
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.detection import (
    AveragePrecision,
    average_precisions,
    class_order,
    largest_recalls,
    ranked,
)
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.models.detections import Detections

SIZES = ((0.0, 1e10), (0.0, 20.0**2), (20.0**2, 35.0**2), (35.0**2, 1e10))


def assert_like_coco(cases: Any, rows: list[ImageBoxes], classes: int, *, limit: int = 100) -> None:
    expected = cases.coco(rows, classes, sizes=SIZES, max_detections=limit)
    table = BoxTable.gather(rows, classes)
    found = match_detections(table, sizes=SIZES, max_detections=limit)
    for a, matches in enumerate(found):
        precision, recall = expected.eval["precision"][:, :, :, a, 0], expected.eval["recall"][:, :, a, 0]
        absent = recall == -1
        np.testing.assert_allclose(
            average_precisions(matches), np.where(absent, np.nan, precision.mean(axis=1)), atol=1e-9
        )
        np.testing.assert_allclose(largest_recalls(matches), np.where(absent, np.nan, recall), atol=1e-9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 15),
    classes=st.integers(1, 5),
    boxes=st.integers(0, 14),
    limit=st.sampled_from([1, 3, 100]),
)
def test_average_precision_is_pycocotools(
    cases: Any, seed: int, images: int, classes: int, boxes: int, limit: int
) -> None:
    rows = cases.random(seed, images=images, classes=classes, boxes=boxes)
    assert_like_coco(cases, rows, classes, limit=limit)


HAND_MADE = {
    "no images' objects": {},
    "no detections": {"truth": [(0, 0, 40, 40, 0)]},
    "no truth": {"found": [(0, 0, 40, 40, 0, 0.5)]},
    "only a crowd": {"ignored": [(0, 0, 40, 40)], "found": [(5, 5, 20, 20, 0, 0.5), (0, 0, 9, 9, 1, 0.4)]},
    "crowd takes any number": {
        "truth": [(0, 0, 20, 20, 0)],
        "ignored": [(30, 0, 90, 60)],
        "found": [(30, 0, 50, 20, 0, 0.9), (40, 0, 60, 20, 0, 0.8), (0, 0, 20, 20, 0, 0.7)],
    },
    "an object is preferred to a crowd around it": {
        "truth": [(10, 10, 30, 30, 0)],
        "ignored": [(0, 0, 60, 60)],
        "found": [(12, 10, 30, 30, 0, 0.5)] * 2,
    },
    "duplicates tie": {
        "truth": [(0, 0, 20, 20, 0)],
        "found": [(0, 0, 20, 20, 0, 0.5), (0, 0, 18, 20, 0, 0.5)],
    },
    "equal overlaps": {
        "truth": [(0, 0, 20, 20, 0), (4, 0, 24, 20, 0)],
        "found": [(2, 0, 22, 20, 0, 0.9), (4, 0, 24, 20, 0, 0.8)],
    },
    "a box on the limit of a size": {
        "truth": [(0, 0, 20, 20, 0), (30, 30, 65, 65, 0)],
        "found": [(0, 0, 20, 19, 0, 0.9), (30, 30, 65, 65, 0, 0.9)],
    },
    "exactly the threshold": {"truth": [(0, 0, 20, 20, 0)], "found": [(0, 0, 20, 10, 0, 0.9)]},
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_cases_are_pycocotools(cases: Any, name: str) -> None:
    other = cases.image(truth=[(0, 0, 30, 30, 1), (50, 50, 60, 60, 0)], found=[(50, 50, 60, 60, 0, 0.45)])
    assert_like_coco(cases, [cases.image(**HAND_MADE[name]), other], 3)
    assert_like_coco(cases, [cases.image(**HAND_MADE[name])], 3)


def test_many_boxes_cross_the_chunks(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cases.random(5, images=10, classes=2, boxes=20)
    table = BoxTable.gather(rows, 2)
    whole = match_detections(table)[0]
    monkeypatch.setattr("visionsft.evaluation.metrics.matching._CHUNK", 7)
    np.testing.assert_array_equal(match_detections(table)[0].truth, whole.truth)


def test_order_of_images_only_matters_for_ties(cases: Any) -> None:
    rng = np.random.default_rng(0)
    rows = [
        ImageBoxes(r.truth, r.truth_labels, r.ignored, r.found, rng.random(len(r.found)), r.labels)
        for r in cases.random(3, images=20)
    ]
    one, other = (
        average_precisions(match_detections(BoxTable.gather(order, 4))[0]) for order in (rows, rows[::-1])
    )
    np.testing.assert_allclose(one, other)


def test_precision_and_recall_are_scikit_learns_where_every_object_is_found(cases: Any) -> None:
    truth = [(30 * i, 0, 30 * i + 20, 20, 0) for i in range(10)]
    scores = [0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    found = [(*box, score) for box, score in zip(truth, scores, strict=True)]
    false = [(30 * i, 50, 30 * i + 20, 70, 0, score - 0.03) for i, score in enumerate(scores[:6])]
    matches = match_detections(BoxTable.gather([cases.image(truth, [], found + false)], 1))[0]
    hits, wrong = (part[0].cumsum() for part in ranked(matches, 0))
    order = class_order(matches, 0)
    expected = precision_recall_curve(matches.hits[0, order], matches.scores[order])
    np.testing.assert_allclose((hits / (hits + wrong))[::-1], expected[0][:-1])
    np.testing.assert_allclose((hits / 10)[::-1], expected[1][:-1])


def test_a_label_beyond_the_classes_is_refused(cases: Any) -> None:
    with pytest.raises(ValueError, match=r"truth: the labels \[3\]; allowed are 0\.\.1"):
        BoxTable.gather([cases.image(truth=[(0, 0, 1, 1, 3)])], 2)


def as_batch(rows: list[ImageBoxes]) -> tuple[list[Detections], list[Target]]:
    found = [
        Detections(*(torch.from_numpy(each) for each in (row.found, row.scores, row.labels))) for row in rows
    ]
    targets = [
        Target(
            boxes=torch.from_numpy(row.truth),
            labels=torch.from_numpy(row.truth_labels),
            ignored=torch.from_numpy(row.ignored),
        )
        for row in rows
    ]
    return found, targets


def test_accumulated_batches_give_pycocotools_numbers_and_start_anew(cases: Any) -> None:
    rows = cases.random(11, images=9)
    metric = AveragePrecision(4)
    metric.update(*as_batch(cases.random(12)))
    metric.reset()
    for start in range(0, 9, 4):
        metric.update(*as_batch(rows[start : start + 4]))
    precision = cases.coco(rows, 4).eval["precision"][..., 0, 0]
    expected = [part[part > -1].mean() for part in (precision, precision[0])]
    assert list(metric.compute().values()) == pytest.approx(expected, abs=1e-9)


def test_nothing_seen_has_no_average_precision() -> None:
    assert all(np.isnan(value) for value in AveragePrecision(3).compute().values())


def _work(rank: int, folder: str, rows: list[ImageBoxes]) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    metric = AveragePrecision(4)
    metric.update(*as_batch(rows[:5] if rank == 0 else rows[5:]))
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_on_what_one_finds(cases: Any, tmp_path: Path) -> None:
    rows = cases.random(21, images=9)
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(rank, str(tmp_path), rows)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    alone = AveragePrecision(4)
    alone.update(*as_batch(rows))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [alone.compute()] * 2
