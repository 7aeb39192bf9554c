"""What is kept of each image comes back from its file, and gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batch import Item
from datamodules.objects import Target
from visionsft.errors import RunError
from visionsft.evaluation.detection_counts import (
    FILE,
    DetectionCounts,
    load_detection_counts,
    save_detection_counts,
)
from visionsft.models.detections import Detections


def filled(images: int = 5) -> DetectionCounts:
    """Images of 0, 1, 2... objects and as many detections the other way round; every second has a crowd."""
    generator = torch.Generator().manual_seed(0)
    counts = DetectionCounts(("car", "Fußgänger"))
    for i in range(images):
        corners = torch.rand((images, 2), generator=generator) * 50
        boxes = torch.cat([corners, corners + 10], 1)
        found = images - 1 - i
        target = Target(boxes=boxes[:i], labels=torch.arange(i) % 2, ignored=boxes[: i % 2])
        detections = Detections(
            boxes[:found], torch.rand(found, generator=generator), torch.arange(found) % 2
        )
        counts.add(
            detections, target, item=Item(f"{i}.png", f"drive{i // 2}", f"/x/{i}.png"), size=(60, 60 + i)
        )
    return counts


@pytest.mark.parametrize("images", [0, 1, 5])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, images: int) -> None:
    counts = filled(images)
    assert save_detection_counts(counts, tmp_path) == tmp_path / FILE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    again = load_detection_counts(tmp_path)
    assert (again.classes, again.items, again.sizes) == (counts.classes, counts.items, counts.sizes)
    for one, other in zip(counts.boxes, again.boxes, strict=True):
        assert other.ignored_labels.tolist() == [-1] * len(one.ignored)
        for name, value in vars(one).items():
            if value is None:
                continue
            assert getattr(other, name).dtype == value.dtype
            np.testing.assert_array_equal(getattr(other, name), value)


def test_units_are_groups_or_images() -> None:
    counts = filled()
    assert counts.names("group") == ["drive0", "drive0", "drive1", "drive1", "drive2"]
    assert counts.names("image") == counts.ids == [f"{i}.png" for i in range(5)]


def test_taken_images_keep_their_boxes() -> None:
    taken = filled().take(np.array([4, 1]))
    assert taken.ids == ["4.png", "1.png"]
    assert taken.sizes == [(60, 64), (60, 61)]
    assert np.bincount(taken.table().truth_image).tolist() == [4, 1]


def test_a_missing_or_old_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist: evaluate the run first"):
        load_detection_counts(tmp_path)
    np.savez(tmp_path / FILE, ids=np.array(["a"]))
    with pytest.raises(RunError, match="has no brightness, classes, found, groups, ignored"):
        load_detection_counts(tmp_path)
