"""Details of a split that has nothing to count them from."""

from __future__ import annotations

import json

import pytest
import torch

from visionsft.evaluation.calibration import STEP
from visionsft.evaluation.details import Details
from visionsft.evaluation.temperature import Temperature


@pytest.mark.parametrize("temperature", [None, Temperature(2.0, {"split": "val"}, {})])
def test_labels_beside_the_lattice_leave_the_error_undefined(temperature: Temperature | None) -> None:
    masks = torch.full((2, 9, 9), 1)
    masks[:, ::STEP, ::STEP] = 255
    logits = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    details = Details(3, temperature=temperature, with_boundaries=True)
    details.add(logits, logits.argmax(1).to(torch.uint8), masks)
    report = json.loads(json.dumps(details.describe("abc"), allow_nan=False))
    assert report["calibration"]["ece"] is None
    assert report["calibration"]["pixels"] == 0
    assert report["boundaries"]["trimap"][0]["mean_iou"] is None  # one class: no edge
    assert report["boundaries"]["objects"]["b"][1]["objects"] == 2  # of 72 pixels
    assert "(ECE)  -" in details.lines()[0]
