"""Test-time augmentation: views come back where they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visionsft.models.views import SYMMETRIES, average_views


def pixelwise(image: Tensor) -> Tensor:
    """A model without neighbourhood: every view of it must give the same."""
    return torch.cat([image, -image, image**2], 1)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_views_of_a_pixelwise_model_agree(symmetry: str) -> None:
    image = torch.randn(2, 1, 12, 17)
    plain = pixelwise(image)
    averaged = average_views(pixelwise, image, scales=(1.0,), symmetry=symmetry)
    torch.testing.assert_close(averaged.softmax(1), plain.softmax(1))


def test_one_view_is_the_model_itself() -> None:
    image = torch.randn(1, 1, 5, 6)
    assert torch.equal(average_views(pixelwise, image, scales=(1.0,), symmetry="none"), pixelwise(image))


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_scaled_view_lies_on_the_image(scale: float) -> None:
    """A ramp stays a ramp: a shift of half a pixel would show."""
    ramp = torch.linspace(-1, 1, 40).expand(1, 1, 30, 40)
    back = average_views(lambda view: torch.cat([view, 0 * view], 1), ramp, scales=(scale,), symmetry="none")
    assert back.shape == (1, 2, 30, 40)
    assert (back[0, 0, :, 4:-4] - ramp[0, 0, :, 4:-4]).abs().max() < 1e-3


def test_symmetries_are_all_different() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    seen: list[bytes] = []
    average_views(lambda v: seen.append(v.numpy().tobytes()) or v, image, scales=(1.0,), symmetry="d4")  # type: ignore
    assert len(set(seen)) == 8
