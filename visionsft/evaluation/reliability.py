"""Reliability: bins of stated confidence as plain values, for JSON and charts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def bins_of(histogram: NDArray[np.float64]) -> dict[str, Any]:
    """(bins, 3) of answers, the sum of their confidences and how many are right, over 0 to 1 in equal widths.

    -> "bins", each with "from", "to", "count", "confidence" and "accuracy" (None in an empty one), "count" of
    all, and "ece": the mean distance of the two, weighted by the bins' counts.
    """
    edges = np.linspace(0, 1, len(histogram) + 1).tolist()
    rows = [
        {
            "from": low,
            "to": high,
            "count": int(count),
            "confidence": confidence / count if count else None,
            "accuracy": right / count if count else None,
        }
        for low, high, (count, confidence, right) in zip(edges, edges[1:], histogram.tolist(), strict=False)
    ]
    count = histogram[:, 0].sum()
    ece = float(np.abs(histogram[:, 2] - histogram[:, 1]).sum() / max(count, 1))
    return {"bins": rows, "count": int(count), "ece": ece if count else None}
