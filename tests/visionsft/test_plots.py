"""Plots: the marks stand where the numbers are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, precision_score, recall_score

from visionsft import plots
from visionsft.evaluation.metrics.detection_curves import DetectionCurve


def points(figure: Figure, label: str) -> tuple[list[float], list[float]]:
    """x and y of the line of that name."""
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))


def row_names(figure: Figure) -> list[str]:
    """From top to bottom."""
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[0].get_yticklabels()][::-1]


def scores(**iou: float | None) -> dict:
    return {"scores": {"per_class": [{"name": k, "iou": v, "recall": v and v / 2} for k, v in iou.items()]}}


def test_curves_leave_out_epochs_without_validation():
    rows = [{"epoch": 0, "train/loss": 2.0, "val/loss": None}, {"epoch": 1, "train/loss": 1.0, "val/loss": 1.5}]
    figure = plots.losses(rows)
    assert points(figure, "training") == ([1, 2], [2.0, 1.0])
    assert points(figure, "validation") == ([2], [1.5])
    assert not plots.validation_scores(rows).axes[0].lines


def test_classes_are_sorted_best_first_with_their_intervals():
    values = {**scores(a=0.2, b=0.9, gone=None, c=0.5)}
    values["intervals"] = {"per_class": {"c": {"iou": [0.4, 0.7]}, "a": {"iou": None}}}
    figure = plots.class_scores(values)
    assert row_names(figure) == ["b", "c", "a"]
    assert points(figure, "IoU") == ([0.2, 0.5, 0.9], [0, 1, 2])
    assert points(figure, "recall")[0] == [0.1, 0.25, 0.45]
    (whisker,) = [line for line in figure.axes[0].lines if line.get_label().startswith("_")]
    assert (list(whisker.get_xdata()), list(whisker.get_ydata())) == ([0.4, 0.7], [1, 1])


def test_dollar_signs_in_names_are_no_mathematics():
    figure = plots.class_scores(scores(**{"$a_b$": 0.5}))
    figure.draw_without_rendering()
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text().replace("\\", "") == "$a_b$"
    assert label._preprocess_math(label.get_text()) == ("$a_b$", False)


def test_the_greatest_gain_is_on_top():
    figure = plots.class_differences(scores(a=0.5, b=0.5, c=None), scores(a=0.4, b=0.8, c=0.1), names=("x", "y"))
    assert row_names(figure) == ["b", "a"]
    assert points(figure, "y")[0] == [0.4, 0.8]


def test_slices_have_the_worst_on_top():
    rows = [{"by": "d", "value": v, "mean_iou": s, "interval": None} for v, s in (("x", 0.7), ("y", 0.2), ("z", None))]
    assert row_names(plots.slices(rows)) == ["d: y", "d: x"]


def test_reliability_dots_grow_with_their_share_and_empty_bins_have_none():
    bins = [{"confidence": c, "accuracy": c / 2, "pixels": n} for c, n in ((0.1, 0), (0.5, 10), (0.9, 30))]
    figure = plots.reliability(bins)
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[0.5, 0.25], [0.9, 0.45]]
    assert dots.get_sizes()[0] < dots.get_sizes()[1]


def test_precision_and_recall_are_those_of_the_sorted_probabilities():
    rng = np.random.default_rng(0)
    probability = rng.random(2000).round(3)
    is_class = rng.random(2000) < probability**2
    edges = np.linspace(0, 1, 11)
    inside = [(probability >= low) & (probability < high) for low, high in pairwise([*edges[:-1], 1.1])]
    bins = [{"pixels": int(where.sum()), "accuracy": is_class[where].mean()} for where in inside]
    recall, precision = plots.precision_recall_points([*bins, {"pixels": 0, "accuracy": None}])
    expected = [
        (recall_score(is_class, probability >= low), precision_score(is_class, probability >= low))
        for low in edges[-2::-1]
    ]
    np.testing.assert_allclose(list(zip(recall, precision, strict=True)), expected)
    assert plots.precision_recall_points([{"pixels": 5, "accuracy": 0.0}]) == ([], [])


def test_classes_have_small_axes_of_their_own():
    bins = [{"pixels": 4, "confidence": 0.3, "accuracy": 0.5}, {"pixels": 0, "confidence": None, "accuracy": None}]
    for draw in (plots.class_reliability, plots.precision_recall):
        figure = draw({"a": bins, "$b$": bins})
        figure.draw_without_rendering()
        assert [axes.get_title(loc="left").replace("\\", "") for axes in figure.axes] == ["a", "$b$"]
    curve = plots.class_reliability({"a": bins}).axes[0].lines[-1]
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([0.3], [0.5])


def test_the_histogram_counts_every_labelled_sample():
    figure = plots.sample_scores([0.1, 0.12, 0.9, 1.0, np.nan])
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 4
    assert points(figure, "median 0.510")[0] == [0.51, 0.51]


@pytest.mark.parametrize("south", [-33.0, 0.0, 64.0])
def test_a_map_shows_every_outline_in_its_true_shape(south):
    def square(lon: float, lat: float, split: str) -> dict[str, str]:
        ring = [(lon, lat), (lon + 1, lat), (lon + 1, lat + 1), (lon, lat + 1), (lon, lat)]
        return {"id": "x", "split": split, "outline": f"POLYGON (({', '.join(f'{x} {y}' for x, y in ring)}))"}

    outlines = [square(-3, south, "train"), square(4, south + 2, "test")]
    assert plots.bounds(outlines) == (-3, south, 5, south + 3)
    figure = plots.footprints(outlines)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (west, east), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert west < -3 < 5 < east
    assert low < south < south + 3 < high
    box = axes.get_window_extent()
    east_per_north = (box.width / (east - west)) / (box.height / (high - low))
    assert east_per_north == pytest.approx(np.cos(np.radians(south + 1.5)), rel=0.01)
    assert points(figure, "test: 1") == ([4.5], [south + 2.5])


TRIALS = [
    {"number": 0, "state": "complete", "score": 0.7, "values": {"lr": 1e-3, "head": "linear"}},
    {"number": 1, "state": "pruned", "score": 0.5, "values": {"lr": 1e-1, "head": "{name: fpn, $x$}", "width": 64}},
    {"number": 3, "state": "complete", "score": 0.8, "values": {"lr": 1e-2, "head": "linear"}},
]


def test_study_history_follows_the_best() -> None:
    (axes,) = plots.study_history(TRIALS).axes
    complete, pruned, best = axes.get_lines()
    assert complete.get_xydata().tolist() == [[0, 0.7], [3, 0.8]]
    assert pruned.get_xydata().tolist() == [[1, 0.5]]
    assert best.get_ydata().tolist() == [0.7, 0.8]
    assert plots.study_history(TRIALS[1:2]).axes  # nothing has been finished


def test_study_importance_has_the_largest_on_top() -> None:
    (axes,) = plots.study_importance({"lr": 0.2, "head": 0.8}).axes
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.8]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr", "head"]


def test_study_parallel_goes_from_value_to_value() -> None:
    figure = plots.study_parallel(TRIALS)
    (axes,) = figure.axes
    worst, middle, best = (line.get_ydata() for line in axes.get_lines()[:3])
    # rates in their logarithm, heads by name, a key that is not used below the others, then the score
    assert worst[:1].tolist() == [1.0]
    assert middle[0] == 0.0
    assert best.tolist() == pytest.approx([0.5, 0.25, -0.15, 1.0])
    assert worst[1] == 0.75
    assert best[2] < worst[2]
    figure.canvas.draw()


def candidate(label, ms, score, *, ends=(None, None), recommended=False, within_limits=True):
    low, high = ends
    return {"label": label, "inference_ms": ms, "accuracy": score, "low": low, "high": high,
            "recommended": recommended, "within_limits": within_limits}  # fmt: skip


def test_candidates_stand_at_their_cost_and_score():
    rows = [candidate("a", 20.0, 0.9, ends=(0.8, 0.95)), candidate("b=$x$", 5.0, 0.8, recommended=True),
            candidate("c", 50.0, 0.85, within_limits=False)]  # fmt: skip
    figure = plots.candidates(rows, metric="accuracy", limit=30.0)
    assert points(figure, "other candidates") == ([20.0], [0.9])
    assert points(figure, "recommended") == ([5.0], [0.8])
    assert points(figure, "beyond a limit") == ([50.0], [0.85])
    assert points(figure, "30 ms")[0] == [30.0, 30.0]
    (whisker,) = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0.8, 0.95]]
    assert list(whisker.get_xdata()) == [20.0, 20.0]
    assert {text.get_text().replace("\\", "") for text in figure.axes[0].texts} == {"a", "b=$x$", "c"}


def test_names_of_near_candidates_do_not_cover_each_other():
    figure = plots.candidates([candidate(str(k), 10.0, 0.5 + k / 1000) for k in range(4)], metric="accuracy")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_embeddings_are_coloured_by_their_most_frequent_names():
    names = [*"aaabbc", "", *map(str, range(9))]
    places = np.arange(32).reshape(16, 2)
    figure = plots.embeddings(places, names, axes=("one", "two"), title="PCA", pictures=[(1, 2, np.zeros((4, 4, 3)))])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[:3] == ["others", "a", "b"]
    assert len(labels) == 9
    (of_a,) = [each for each in figure.axes[0].collections if each.get_label() == "a"]
    np.testing.assert_array_equal(of_a.get_offsets(), places[:3])
    assert sum(len(each.get_offsets()) for each in figure.axes[0].collections) == 16


def test_embeddings_without_names_have_no_legend():
    figure = plots.embeddings(np.zeros((3, 2)), ["", "", ""], axes=("one", "two"), title="PCA")
    assert figure.axes[0].get_legend() is None


def curve(scores: list[float], hits: list[int], false: list[int], positives: int, images: int) -> DetectionCurve:
    return DetectionCurve(np.array(scores), np.array(hits), np.array(false), positives, images)


def test_detection_curves_have_an_axes_a_class():
    curves = {"car": curve([0.9, 0.5], [1, 2], [0, 2], 4, 10), "person": curve([0.7], [0], [1], 1, 10)}
    figure = plots.precision_recall_curves(curves)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["car", "person"]
    (line,) = figure.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.25, 0.5], [1.0, 0.5])
    figure = plots.false_alarm_curves(curves)
    (line,) = figure.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.001, 0.2], [0.25, 0.5])  # 0 has no logarithm


def test_the_dearest_error_is_on_top():
    kinds = [{"name": "missed", "count": 3, "gain": 0.1}, {"name": "background", "count": 1200, "gain": 0.4},
             {"name": "duplicate", "count": 0, "gain": None}]  # fmt: skip
    figure = plots.error_split({"iou": 0.5, "kinds": kinds})
    assert row_names(figure) == ["background", "missed", "duplicate"]
    assert [bar.get_width() for bar in figure.axes[0].patches][::-1] == [0.4, 0.1, 0.0]
    assert "1,200" in [text.get_text() for text in figure.axes[0].texts]
    nothing = plots.error_split({"iou": 0.5, "kinds": [{"name": "missed", "count": 0, "gain": 0.0}]})
    assert nothing.axes[0].get_xlim()[0] == 0


def test_label_curves_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth = rng.random((50, 2)) < 0.4
    found = np.round(rng.random((50, 2)), 1)  # with equal probabilities
    figure = plots.label_curves(found, truth, ["a", "b"])
    for axes, column, own in zip(figure.axes, found.T, truth.T, strict=True):
        precision, recall, _ = precision_recall_curve(own, column)
        (line,) = axes.lines
        assert list(line.get_xdata()) == pytest.approx(recall[-2::-1])
        assert list(line.get_ydata()) == pytest.approx(precision[-2::-1])
    absent = plots.label_curves(found, np.zeros_like(truth), ["a", "b"])
    assert not any(axes.lines for axes in absent.axes)


def test_reliability_of_scores():
    bins = [{"count": 3, "confidence": 0.2, "accuracy": 0.1}, {"count": 0, "confidence": None, "accuracy": None}]
    figure = plots.reliability(bins, what="a detection’s score", right="find an object")
    assert points(figure, "this model") == ([0.2], [0.1])
    assert figure.axes[0].get_ylabel() == "share that find an object"
