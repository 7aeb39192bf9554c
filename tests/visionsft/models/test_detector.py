"""Detectors: equal to torchvision's with the same weights; ignored regions, padding, precision, errors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, box_iou, remove_small_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from backbones import create_backbone
from datamodules.objects import Target
from visionsft.errors import ConfigError
from visionsft.models.detector import DetectionModel, create_detector
from visionsft.models.heads.detection import centred_in, mostly_in

UPRIGHT = ("fcos", "retinanet", "faster_rcnn", "mask_rcnn")

CLASSES, WIDTH = 3, 64
RATIOS = (0.25, 1.0, 4.0)  # whose sides are whole numbers, as torchvision's anchors are
ANCHORED = ("retinanet", "faster_rcnn", "mask_rcnn")
TWO_STAGES = ("faster_rcnn", "mask_rcnn")
SMALL = {
    "fcos": {"width": WIDTH, "convs": 1},
    "retinanet": {"width": WIDTH, "convs": 4, "anchor_sizes": [[s * 4, s * 6] for s in (8, 16, 32, 64, 128)]},
    "faster_rcnn": {"width": WIDTH, "hidden": 24, "anchor_sizes": [[s * 8] for s in (4, 8, 16, 32, 64)]},
}
SMALL["mask_rcnn"] = SMALL["faster_rcnn"]


def make_detector(head: str, backbone: str = "test_resnet", **options: Any) -> DetectionModel:
    """A small one whose predictions are anything but alike."""
    torch.manual_seed(0)
    ratios = {"aspect_ratios": RATIOS} if head in ANCHORED else {}
    made = create_backbone(backbone, weights="none")
    model = create_detector(made, CLASSES, head=head, options={**SMALL[head], **ratios, **options})
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def make_target(boxes: list[list[float]], ignored: list[list[float]] | None = None) -> Target:
    """Whose masks are the upper left halves of the boxes, in pictures of 128 x 128."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    x1, y1, x2, y2 = corners[..., None, None].unbind(1)
    right, down = (torch.arange(128) - x1) / (x2 - x1), (torch.arange(128)[:, None] - y1) / (y2 - y1)
    return Target(
        boxes=corners,
        labels=torch.arange(len(boxes)) % CLASSES,
        ignored=torch.tensor(ignored or [], dtype=torch.float32).reshape(-1, 4),
        masks=(right >= 0) & (down >= 0) & (right + down < 1),
    )


TARGETS = [make_target([[8, 12, 40, 60], [70, 20, 110, 50.5]]), make_target([[5, 4, 21, 17]])]


class TorchvisionBackbone(nn.Module):
    """The backbone and torchvision's own pyramid with the head's weights."""

    def __init__(self, model: DetectionModel, first: int, extra: Any) -> None:
        super().__init__()
        self.body, self.first, self.out_channels = model.backbone, first, WIDTH
        self.fpn = FeaturePyramidNetwork(list(self.body.channels[first:]), WIDTH, extra)
        self.fpn.load_state_dict(model.head.pyramid.fpn.state_dict())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.body(image)[self.first :]
        named: dict[str, Tensor] = self.fpn(OrderedDict((str(i), each) for i, each in enumerate(maps)))
        return named


def make_torchvision(name: str, model: DetectionModel, threshold: float) -> nn.Module:
    """Torchvision's detector with the weights of `model`."""
    plain: Any = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True, "min_size": 128}
    one_stage = name not in TWO_STAGES
    extra = LastLevelP6P7(WIDTH, WIDTH) if one_stage else LastLevelMaxPool()
    backbone = TorchvisionBackbone(model, 1 if one_stage else 0, extra)
    sizes = tuple(map(tuple, SMALL[name].get("anchor_sizes", [[8], [16], [32], [64], [128]])))  # type: ignore[attr-defined]
    anchors = AnchorGenerator(sizes, ((RATIOS if name in ANCHORED else (1.0,)),) * 5)
    if name in TWO_STAGES:
        if name == "mask_rcnn":
            plain["mask_head"] = MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1)
            plain["mask_predictor"] = MaskRCNNPredictor(WIDTH, WIDTH, CLASSES + 1)
        detector: nn.Module = (MaskRCNN if name == "mask_rcnn" else FasterRCNN)(
            backbone, rpn_anchor_generator=anchors, box_score_thresh=threshold,
            box_head=TwoMLPHead(WIDTH * 49, 24), box_predictor=FastRCNNPredictor(24, CLASSES + 1), **plain,
        )  # fmt: skip
        detector.rpn.load_state_dict(model.head.rpn.state_dict())
        detector.roi_heads.load_state_dict(model.head.roi_heads.state_dict())
        return detector
    if name == "fcos":
        detector = FCOS(backbone, CLASSES, anchor_generator=anchors, score_thresh=threshold,
                        head=FCOSHead(WIDTH, 1, CLASSES, num_convs=1), **plain)  # fmt: skip
    else:
        detector = RetinaNet(backbone, CLASSES, anchor_generator=anchors, score_thresh=threshold,
                             detections_per_img=100, **plain)  # fmt: skip
    detector.head.load_state_dict(model.head.detector.head.state_dict())
    return detector


def torchvision_targets(name: str, targets: list[Target]) -> list[dict[str, Tensor]]:
    shift = int(name in TWO_STAGES)
    return [{**each, "labels": each["labels"] + shift} for each in targets]  # type: ignore[dict-item]


@pytest.mark.parametrize("sizes", [[(128, 128)] * 2, [(128, 128), (96, 64)]])
@pytest.mark.parametrize("head", SMALL)
def test_losses_are_torchvisions(head: str, sizes: list[tuple[int, int]]) -> None:
    """Also in a padded batch, where no object lies at the padding."""
    model = make_detector(head).eval()
    theirs = make_torchvision(head, model, 0.05).train()
    theirs.backbone.body.eval()
    images = [torch.randn(3, *size) for size in sizes]
    torch.manual_seed(1)
    expected = theirs(images, torchvision_targets(head, TARGETS))
    torch.manual_seed(1)  # of the sampling of proposals
    losses = model.losses(padded(images), sizes, TARGETS)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-4, rtol=1e-4)
        assert loss > 0


@pytest.mark.parametrize("head", SMALL)
def test_detections_are_torchvisions(head: str) -> None:
    """But for boxes without area."""
    threshold = {"fcos": 0.05, "retinanet": 0.011}.get(head, 0.26)
    model = make_detector(head, score_threshold=threshold).train()  # detects in either mode
    model.backbone.eval()
    theirs = make_torchvision(head, model, threshold).eval()
    images = [torch.randn(3, 128, 128) for _ in range(2)]
    for found, expected in zip(model(padded(images)), theirs(images), strict=True):
        assert len(found) > 5
        kept = remove_small_boxes(expected["boxes"], 1e-2)
        torch.testing.assert_close(found.boxes, expected["boxes"][kept], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.scores, expected["scores"][kept], atol=1e-4, rtol=1e-4)
        assert torch.equal(found.labels, expected["labels"][kept] - int(head in TWO_STAGES))
        assert (found.masks is None) == (head != "mask_rcnn")
        if found.masks is not None:
            assert found.masks.shape == (len(found), 128, 128)
            torch.testing.assert_close(found.masks, expected["masks"][:, 0], atol=1e-4, rtol=1e-4)


def padded(images: list[Tensor]) -> Tensor:
    height, width = (max(each.shape[axis] for each in images) for axis in (1, 2))
    batch = torch.zeros(len(images), len(images[0]), height, width)
    for i, each in enumerate(images):
        batch[i, :, : each.shape[1], : each.shape[2]] = each
    return batch


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("head", UPRIGHT)
def test_a_step_of_real_backbones_in_bfloat16(head: str, name: str) -> None:
    """Every head parameter gets a finite gradient at a size off the grid; detections lie in their images."""
    size, sizes = (75, 101), [(75, 101), (50, 60)]
    backbone = create_backbone(
        name, weights="none", in_chans=5, img_size=size if name == "test_vit" else None
    )
    options = {**SMALL[head], "score_threshold": 0.0}
    options.pop("anchor_sizes", None)
    model = create_detector(backbone, CLASSES, head=head, options=options)
    model = model.to(memory_format=torch.channels_last)
    image = torch.randn(2, 5, *size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(image, sizes, [TARGETS[1], make_target([])])
        found = model.eval().detect(image, sizes)
    assert all(loss.dtype == torch.float32 and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in model.head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    for each, (height, width) in zip(found, sizes, strict=True):
        assert len(each) > 0
        assert each.boxes.dtype == each.scores.dtype == torch.float32
        assert (each.boxes[:, :2] < each.boxes[:, 2:]).all()
        assert (each.boxes >= 0).all()
        assert (each.boxes <= torch.tensor([width, height, width, height])).all()
        assert set(each.labels.tolist()) <= set(range(CLASSES))
        assert (each.scores.diff() <= 0).all()
        assert each.masks is None or each.masks.shape == (len(each), height, width)


@pytest.mark.parametrize("ignored", [[], [[0.0, 0.0, 128.0, 128.0]]])
@pytest.mark.parametrize("head", SMALL)
def test_images_without_objects_train(head: str, ignored: list[list[float]]) -> None:
    """Nothing but background gives a loss; nothing but an ignored region gives none."""
    model = make_detector(head)
    losses = model.losses(torch.randn(1, 3, 128, 128), [(128, 128)], [make_target([], ignored)])
    total = sum(losses.values())
    total.backward()
    gradients = [p.grad for p in model.head.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (total.item() == 0) if ignored else (total.item() > 0.01)


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_predictions_in_an_ignored_region_do_not_count(head: str) -> None:
    """Neither loss nor gradient depends on them; on those elsewhere, and on those of the object in it, both do."""
    model = make_detector(head).eval()
    region, object_in_it = [40.0, 0.0, 128.0, 128.0], [60.0, 20.0, 124.0, 90.0]
    target = make_target([object_in_it], [region])
    outputs, levels = model.head.predict(model.features(torch.randn(1, 3, 128, 128)))
    anchors = torch.cat(levels)
    inside = (
        in_region(anchors, [region]) if head == "retinanet" else centred_in(anchors, torch.tensor([region]))
    )
    gradient, loss = gradient_of_logits(model, outputs, levels, target)
    counted = gradient[0].abs().amax(-1) > 0
    assert counted[~inside].all()
    assert 0 < counted[inside].sum() < inside.sum() / 2  # the object's own, nothing else

    changed = outputs | {"cls_logits": outputs["cls_logits"].detach().clone()}
    changed["cls_logits"][0, inside & ~counted] += 3
    _, same = gradient_of_logits(model, changed, levels, target)
    assert same == loss
    changed["cls_logits"][0, ~inside] += 3
    _, other = gradient_of_logits(model, changed, levels, target)
    assert other != loss


def in_region(boxes: Tensor, regions: list[list[float]]) -> Tensor:
    return mostly_in(boxes, torch.tensor(regions), (128, 128))


def gradient_of_logits(
    model: DetectionModel, outputs: dict[str, Tensor], levels: list[Tensor], target: Target
) -> tuple[Tensor, float]:
    logits = outputs["cls_logits"].detach().requires_grad_()
    losses = model.head.detector.compute_loss(
        [{**target, "size": (128, 128)}],
        outputs | {"cls_logits": logits},
        [torch.cat(levels)],
        list(map(len, levels)),
    )
    losses["classification"].backward()
    assert logits.grad is not None
    return logits.grad, losses["classification"].item()


def test_the_proposal_network_learns_nothing_from_an_ignored_region() -> None:
    """Nor from anchors in the padding as an object; an object inside the region is still learnt."""
    rpn = make_detector("faster_rcnn").head.rpn
    levels = [torch.zeros(1, 1, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
    anchors = torch.cat(rpn.anchor_generator.levels(levels))
    region = [[40.0, 0.0, 128.0, 128.0]]
    target = {**make_target([[60, 20, 92, 52]], region), "size": (128, 128)}
    (labels,), _ = rpn.assign_targets_to_anchors([anchors], [target])
    inside = in_region(anchors, region)
    assert (labels[inside] == 1).any()
    assert not (labels[inside] == 0).any()
    assert (labels[~inside] == 0).all()

    narrow = {**make_target([[60, 20, 76, 52]]), "size": (128, 70)}
    (labels,), _ = rpn.assign_targets_to_anchors([anchors], [narrow])
    beside = (anchors[:, 0] + anchors[:, 2]) / 2 >= 70
    assert (labels[beside] == 0).all()
    assert (labels[~beside] == 1).any()


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_positions_in_the_padding_find_nothing(head: str) -> None:
    """An object at the image's edge is learnt from positions in the image; none beside it counts as its."""
    model = make_detector(head, score_threshold=0.0).eval()
    # one that fits no anchor matches all those around it
    sizes, target = [(128, 70)], make_target([[54, 20, 70, 52] if head == "fcos" else [68, 30, 70, 32]])
    seen: list[Tensor] = []
    compute = model.head.detector.head.compute_loss
    model.head.detector.head.compute_loss = lambda *args: (seen.extend(args[-1]), compute(*args))[1]
    image = torch.randn(1, 3, 128, 128)
    model.losses(image, sizes, [target])
    _, levels = model.head.predict(model.features(image))
    anchors = torch.cat(levels)
    beside = (anchors[:, 0] + anchors[:, 2]) / 2 >= 70
    assert (seen[0][beside] == -1).all()
    assert (seen[0][~beside] == 0).any()
    if head == "retinanet":  # without the image's size they would
        model.losses(image, [(128, 128)], [target])
        assert (seen[1][beside] == 0).any()


def test_proposals_in_an_ignored_region_are_dropped_unless_they_match() -> None:
    model = make_detector("faster_rcnn", score_threshold=0.0).eval()
    seen: list[list[Tensor]] = []
    model.head.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    region, inner = [[30.0, 0.0, 128.0, 128.0]], [60.0, 20.0, 124.0, 90.0]
    image = torch.randn(1, 3, 128, 128)
    model.losses(image, [(128, 128)], [make_target([inner], region)])
    model.losses(image, [(128, 128)], [make_target([inner])])
    ignored, all_of_them = (in_region(boxes, region) & (overlap(boxes, inner) < 0.5) for (boxes,) in seen)
    assert all_of_them.any()
    assert not ignored.any()
    assert (overlap(seen[0][0], inner) >= 0.5).any()


def overlap(boxes: Tensor, box: list[float]) -> Tensor:
    return box_iou(boxes, torch.tensor([box]))[:, 0]


def test_masks_need_outlines() -> None:
    model = make_detector("mask_rcnn")
    plain = make_target([[8, 12, 40, 60]])
    del plain["masks"]
    with pytest.raises(ConfigError, match="boxes without outlines; choose head 'faster_rcnn'"):
        model.losses(torch.zeros(1, 3, 128, 128), [(128, 128)], [plain])
    found = model.eval()(torch.zeros(1, 3, 64, 96), [(50, 90)])[0]
    assert found.masks is not None
    assert found.masks.shape == (len(found), 50, 90)


@pytest.mark.parametrize("head", UPRIGHT)
def test_patches_of_14_have_anchors_where_they_are(head: str) -> None:
    """Their maps' strides are 3.5, 7, 14 and 28: a rounded stride would shift the far corner by an eighth."""

    class Patches(nn.Module):
        channels, strides = (8,), (14,)

        def forward(self, image: Tensor) -> list[Tensor]:
            return [nn.functional.avg_pool2d(image, 14).repeat(1, 8, 1, 1)]

    options = {k: v for k, v in SMALL[head].items() if k != "anchor_sizes"}
    model = create_detector(Patches(), CLASSES, head=head, options=options | {"finest_stride": 4})
    levels = model.head.pyramid(model.features(torch.zeros(1, 1, 140, 280)))
    rpn = getattr(model.head, "rpn", None)
    generator = rpn.anchor_generator if rpn else model.head.detector.anchor_generator
    anchors = generator.levels(levels)
    assert levels[0].shape[-2:] == (40, 80)
    centre = (anchors[0][-1, :2] + anchors[0][-1, 2:]) / 2
    torch.testing.assert_close(centre, torch.tensor([280 - 3.5, 140 - 3.5]))
    if rpn:
        assert model.head.roi_heads.box_roi_pool.scales[0] == 1 / 3.5


@pytest.mark.parametrize(
    ("head", "options", "text"),
    [
        ("fcoss", {}, "did you mean 'fcos'"),
        ("visionsft.models.heads:FpnHead", {}, "no detection head, it has no method losses or detect"),
        ("fcos", {"depth": 3}, "its own options are width, finest_stride, convs"),
        ("fcos", {"width": 48}, "multiples of 32"),
        ("fcos", {"finest_stride": 6}, "there are 4, 8, 16, 32"),
        ("retinanet", {"convs": 5}, "allowed are 1 to 4"),
        ("retinanet", {"anchor_sizes": [[8], [16]]}, "2 lists for 5 levels"),
        ("faster_rcnn", {"anchor_sizes": [[8], [16], [1, 2], [3], [4]]}, "equally many sizes"),
        ("faster_rcnn", {"aspect_ratios": []}, "at least one size and ratio"),
    ],
)
def test_mistakes_are_answered(head: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        create_detector(create_backbone("test_resnet", weights="none"), CLASSES, head=head, options=options)


def test_the_heads_weights_are_apart_from_the_backbones() -> None:
    for head in SMALL:
        keys = make_detector(head).state_dict()
        assert {key.split(".")[0] for key in keys} == {"backbone", "head"}
        assert not any("backbone" in key for key in keys if key.startswith("head."))
