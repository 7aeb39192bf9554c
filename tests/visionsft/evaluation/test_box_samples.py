"""Two detectors on the same images: exact numbers, p-values by simulation and scipy, and what isn't compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from visionsft.errors import RunError
from visionsft.evaluation.box_samples import BoxSamples
from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.detection_scores import score_detections
from visionsft.evaluation.differences import differences, permutation_test
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.evaluation.metrics.masks import ImageMasks, mask_runs
from visionsft.evaluation.samples import check_comparable
from visionsft.runs import Run

CLASSES = ("car", "person")


def samples(counts: DetectionCounts, *, score: float = 0.5) -> BoxSamples:
    order = tuple(range(len(counts)))
    run = Run(Path("runs/x"))
    return BoxSamples(run, tuple(counts.ids), tuple(counts.groups), counts.classes, order, counts, 0.5, score)


def detector(rng: np.random.Generator, truths: list[np.ndarray], cases, *, skill: float) -> BoxSamples:
    """Finds each object with the probability `skill`, and raises false alarms; groups of three images."""
    rows = []
    for truth in truths:
        found = truth[rng.random(len(truth)) < skill]
        moved = np.column_stack([found[:, :4] + rng.normal(0, 1.5, (len(found), 4)), found[:, 4]])
        corner = rng.uniform(0, 80, (rng.poisson(1.0), 2))
        false = np.column_stack([corner, corner + 15, rng.integers(0, 2, len(corner))])
        both = np.concatenate([moved, false])
        rows.append(cases.image(truth, (), np.column_stack([both, rng.uniform(0.3, 1, len(both))])))
    return samples(cases.counts(CLASSES, rows, [f"drive{i // 3}" for i in range(len(rows))]))


def make_truths(rng: np.random.Generator, images: int) -> list[np.ndarray]:
    """Up to five objects an image, apart from one another: (N, 5) each."""
    truths = []
    for _ in range(images):
        count = int(rng.integers(1, 6))
        left = 20.0 * np.arange(count)
        top, label = rng.uniform(0, 60, count), rng.integers(0, 2, count)
        truths.append(np.column_stack([left, top, left + 15, top + 15, label]))
    return truths


def test_whole_draws_give_the_runs_own_numbers(cases) -> None:
    rng = np.random.default_rng(0)
    truths = make_truths(rng, 24)
    first, second = (detector(rng, truths, cases, skill=skill) for skill in (0.8, 0.6))
    score, groups = first.scorer(second), len(first.group_names)
    for place, each in enumerate((first, second)):
        weights = np.zeros((1, 2 * groups))
        weights[:, place * groups : (place + 1) * groups] = 1
        drawn, exact = score(weights), each.estimates()
        for key, value in exact.items():
            if key != ("map", False):  # a draw takes it at every second IoU
                np.testing.assert_allclose(drawn[key][0], value, atol=1e-12)
        scores = score_detections(each.counts, score=each.score)
        assert exact["map", False] == pytest.approx(scores.map)
        assert exact["precision", False] == pytest.approx(scores.precision)
        assert exact["recall", True].tolist() == pytest.approx([row.recall for row in scores.per_class])


def test_exchanged_runs_differ_by_the_sign_alone(cases) -> None:
    rng = np.random.default_rng(1)
    truths = make_truths(rng, 24)
    first, second = (detector(rng, truths, cases, skill=skill) for skill in (0.9, 0.5))
    rows, mirrored = differences(first, second), differences(second, first)
    for one, two in zip(rows, mirrored, strict=True):
        assert one.difference == -two.difference
        assert one.p == two.p
    headline = next(row for row in rows if row.metric == first.headline)
    assert headline.ends is not None
    assert headline.difference < headline.ends[1] < 0
    assert headline.p == 2 / 2**8


def test_ends_need_no_p_values(cases) -> None:
    rng = np.random.default_rng(5)
    truths = make_truths(rng, 24)
    first, second = (detector(rng, truths, cases, skill=skill) for skill in (0.9, 0.5))
    quick, whole = differences(first, second, tested=False), differences(first, second)
    assert [(row.metric, row.of, row.ends) for row in quick] == [(row.metric, row.of, row.ends) for row in whole]
    assert all(np.isnan(row.p) for row in quick)


def test_masks_that_fill_their_boxes_have_the_boxes_numbers(cases) -> None:
    rng = np.random.default_rng(6)
    truths = [truth.round() for truth in make_truths(rng, 24)]
    runs = []
    for skill in (0.9, 0.5):
        found = detector(rng, truths, cases, skill=skill).counts.boxes
        whole = [replace(row, found=row.found.round().clip(0, 150)) for row in found]
        counts = cases.counts(CLASSES, whole, [f"drive{i // 3}" for i in range(24)])
        counts.masks = [filled(row) for row in counts.boxes]
        runs.append(samples(counts))
    rows = {(row.metric, row.of): row for row in differences(*runs, tested=False)}
    for metric, of in (("map", None), ("ap50", "car"), ("recall", None), ("f1", "person")):
        box, mask = rows[metric, of], rows[f"mask_{metric}", of]
        assert mask.difference == pytest.approx(box.difference)
        assert mask.ends == pytest.approx(box.ends)
    plain = replace(runs[0], counts=cases.counts(CLASSES, runs[0].counts.boxes, list(runs[0].groups)))
    with pytest.raises(RunError, match="have outlines in one run and none in the other"):
        check_comparable(plain, runs[1])


def filled(row: ImageBoxes) -> ImageMasks:
    """Masks of all pixels of the boxes, in images of 150 x 150."""

    def draw(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
        sides = boxes.clip(0, 150).astype(int)
        return tuple(
            mask_runs(np.ones((y2 - y1, x2 - x1), bool), 150, left=x1, top=y1) for x1, y1, x2, y2 in sides
        )

    return ImageMasks(draw(row.truth), draw(row.ignored), draw(row.found))


def test_p_values_of_recall_are_scipys(cases) -> None:
    rng = np.random.default_rng(2)
    truths = make_truths(rng, 21)
    first, second = (detector(rng, truths, cases, skill=skill) for skill in (0.75, 0.65))
    found = np.stack([each._sums.margins[:, 0].sum(axis=1) for each in (first, second)]).astype(float)
    reference = stats.permutation_test(
        tuple(found), lambda a, b, axis: b.sum(axis) - a.sum(axis), permutation_type="samples", n_resamples=1e9
    )
    p = permutation_test(first.scorer(second), 7)["recall", False]
    assert p == pytest.approx(reference.pvalue)


def test_equal_detectors_are_told_apart_as_seldom_as_stated(cases) -> None:
    """160 comparisons of equally good detectors: shares of small p within three standard errors."""
    rng = np.random.default_rng(3)
    p: dict[str, list[float]] = {"map": [], "f1": []}
    for _ in range(160):
        truths = make_truths(rng, 21)
        first, second = (detector(rng, truths, cases, skill=0.7) for _ in range(2))
        chances = permutation_test(first.scorer(second), 7)
        for metric, values in p.items():
            values.append(float(chances[metric, False]))
    for values in p.values():
        for level in (0.1, 0.25, 0.5, 0.75):
            share = (np.array(values) <= level + 1e-9).mean()
            assert abs(share - level) < 3 * np.sqrt(level * (1 - level) / 160) + 2 / 2**7


def test_an_empty_image_left_empty_is_right(cases) -> None:
    empty, alarm = cases.image(), cases.image((), (), [(0, 0, 9, 9, 0, 0.9)])
    assert samples(cases.counts(CLASSES, [empty, alarm])).sample_scores().tolist() == [1.0, 0.0]


def test_other_labels_and_other_overlaps_are_not_compared(cases) -> None:
    rows = [cases.image([(0, 0, 9, 9, 0)]), cases.image([(0, 0, 9, 9, 1)])]
    first = samples(cases.counts(CLASSES, rows))
    moved: list[ImageBoxes] = [rows[0], replace(rows[1], truth=rows[1].truth + 1)]
    assert first.differs(first) is None
    assert first.differs(samples(cases.counts(CLASSES, moved))) == "were scored with other labels in 1 (1.png)"
    stricter = replace(first, iou=0.75)
    assert "different IoU (task.match_iou): 0.5 and 0.75" in str(first.differs(stricter))
    check_comparable(first, replace(first))
