"""Classifiers: pooled heads on any backbone, and their losses against torch's definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from backbones import create_backbone
from visionsft.errors import ConfigError
from visionsft.models import IMAGE_HEADS, class_weights, create_classifier
from visionsft.models.losses import ImageLoss, LabelsLoss
from visionsft.models.views import average_labels


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_logits_of_the_whole_image(name: str, head: str) -> None:
    model = create_classifier(create_backbone(name, weights="none", img_size=(64, 64)), 5, head=head)
    model.eval()
    image = torch.randn(3, 3, 64, 64)
    logits = model(image)
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(model(image.flip(0)).flip(0), logits, atol=1e-5, rtol=1e-4)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_the_place_of_a_feature_does_not_matter(head: str) -> None:
    """Pooling forgets positions: a shuffled map has the same logits."""
    model = IMAGE_HEADS[head]((4, 6), (8, 16), 3).eval()
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    shuffled = maps[1].flatten(2)[..., torch.randperm(16)].view_as(maps[1])
    torch.testing.assert_close(model([maps[0], shuffled]), model(maps), atol=1e-6, rtol=1e-5)


def test_one_image_a_batch_trains() -> None:
    model = create_classifier(create_backbone("test_efficientnet", weights="none"), 2).train()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2)


def test_mistaken_heads_and_options() -> None:
    backbone = create_backbone("test_efficientnet", weights="none")
    with pytest.raises(ConfigError, match="did you mean 'mlp'"):
        create_classifier(backbone, 2, head="mpl")
    with pytest.raises(ConfigError, match=r"its own options are hidden, dropout"):
        create_classifier(backbone, 2, head="mlp", options={"width": 3})


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_weighs_images_by_class(smoothing: float) -> None:
    logits, label = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 0, 0, 1, 0])
    weights = class_weights(torch.tensor([5, 2, 1]), "inverse")
    found = ImageLoss(weights, label_smoothing=smoothing)(logits, label)
    by_hand = F.cross_entropy(logits, label, reduction="none", label_smoothing=0) * weights[label]
    if smoothing:
        uniform = -(logits.log_softmax(1) * weights).sum(1) / 3
        by_hand = (1 - smoothing) * by_hand + smoothing * uniform
    torch.testing.assert_close(found, by_hand.sum() / weights[label].sum())


def test_binary_cross_entropy_pulls_more_where_an_image_has_a_rare_class() -> None:
    logits, label = torch.randn(6, 3), (torch.rand(6, 3) > 0.5).float()
    weights = torch.tensor([0.5, 1.0, 3.0])
    p = logits.sigmoid()
    by_hand = -(label * p.log() * weights + (1 - label) * (1 - p).log())
    torch.testing.assert_close(LabelsLoss(weights)(logits, label), by_hand.mean(), atol=1e-5, rtol=1e-5)
    smooth = LabelsLoss(torch.ones(3), label_smoothing=0.2)(logits, label)
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(logits, label * 0.8 + 0.1))


@pytest.mark.parametrize("multi_label", [False, True])
def test_views_average_probabilities(multi_label: bool) -> None:
    """A model that looks at one corner sees every corner in the eight views of a square."""
    image = torch.randn(2, 3, 6, 6)

    def corner(view: torch.Tensor) -> torch.Tensor:
        return view[:, :, 0, 0]

    found = average_labels(corner, image, scales=(1.0,), symmetry="d4", multi_label=multi_label)
    corners = [image[:, :, row, col] for row in (0, -1) for col in (0, -1)]
    shares = [each.sigmoid() if multi_label else each.softmax(1) for each in corners]
    torch.testing.assert_close(found, torch.stack(shares).mean(0))
    plain = average_labels(corner, image, scales=(1.0,), symmetry="none", multi_label=multi_label)
    torch.testing.assert_close(plain, shares[0])
