"""Turned boxes in the metrics of detection: the area that two have in common.

All else is that of upright boxes: matching, average precision, curves and intervals read areas and common areas only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rotated_intersections(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Common area of each pair of rows: two (N, 5), or one of them (N, 4) upright -> (N,) in square pixels."""
    import torch

    from visionsft.models.rotated import intersect

    first, second = (torch.from_numpy(to_turned(boxes)) for boxes in (one, other))
    return intersect(first, second).numpy()


def to_turned(boxes: NDArray[Any]) -> NDArray[Any]:
    """(N, 4) or (N, 5) -> (N, 5)"""
    if boxes.shape[1] == 5:
        return boxes
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.column_stack([(low + high) / 2, high - low, np.zeros(len(boxes))])
