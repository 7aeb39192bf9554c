"""Detection heads: torchvision's FCOS, RetinaNet, Faster R-CNN and Mask R-CNN on a backbone's feature maps.

Layers, matching, losses and post-processing are torchvision's. Added here: strides that are known instead of
inferred, ignored regions, images of several sizes in one batch, float32 after the last layer whatever the
layers compute in. Torchvision's two-stage heads count the background as class 0; that ends in this module.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead as RetinaNetLayers
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import (
    FeaturePyramidNetwork,
    MultiScaleRoIAlign,
    box_iou,
    clip_boxes_to_image,
    remove_small_boxes,
)
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from datamodules.objects import Target
from visionsft.errors import ConfigError
from visionsft.models.detections import Detections

Size = tuple[int, int]
"""(height, width) of an image without its padding."""

_MATCHED = 0.5  # IoU from which the second stage takes a proposal for an object
_SMALLEST = 1e-2  # pixels; thinner boxes are what clipping left of boxes beside the image


class LevelPyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) over the maps from `finest_stride` on, with coarser levels added."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        *,
        width: int,
        finest_stride: int,
        extra: ExtraFPNBlock,
    ) -> None:
        super().__init__()
        nominal = [2 ** round(math.log2(stride)) for stride in strides]  # patches of 14 have 3.5, 7, 14, 28
        if finest_stride not in nominal:
            raise ConfigError(
                f"finest_stride {finest_stride}: the backbone has no such map; "
                f"there are {', '.join(map(str, nominal))}"
            )
        self.first = nominal.index(finest_stride)
        self.fpn = FeaturePyramidNetwork(list(channels[self.first :]), width, extra)
        added = 1 if isinstance(extra, LastLevelMaxPool) else 2
        self.strides = (*strides[self.first :], *(strides[-1] * 2 ** (i + 1) for i in range(added)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels[i], h_i, w_i), finest first -> levels (B, width, h_j, w_j) at `self.strides`."""
        named = OrderedDict((str(i), each) for i, each in enumerate(maps[self.first :]))
        return list(self.fpn(named).values())


class LevelAnchors(AnchorGenerator):
    """Torchvision's anchors at known strides: it infers them by a division that is wrong off the grid."""

    def __init__(
        self, strides: Sequence[float], sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))  # type: ignore[arg-type]
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Torchvision's anchors before rounding, which would turn 5 pixels into 4. -> (sizes * ratios, 4)."""
        size = torch.as_tensor(scales, dtype=dtype, device=device)
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        widths, heights = (size / root).flatten(), (size * root).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h_i, w_i) -> anchors (h_i * w_i * anchors, 4) float32 of each, in pixels."""
        self.set_cell_anchors(torch.float32, maps[0].device)
        strides: Any = [(stride, stride) for stride in self.strides]
        return self.grid_anchors([list(each.shape[-2:]) for each in maps], strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (N, 4) of all levels, once for each image."""
        return [torch.cat(self.levels(feature_maps))] * len(image_list.image_sizes)


def centres(boxes: Tensor) -> Tensor:
    """boxes: (N, 4) -> (N, 2) x, y."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def in_padding(boxes: Tensor, size: Size) -> Tensor:
    """boxes: (N, 4) -> (N,) bool: the centre lies right of the image or below it."""
    x, y = centres(boxes).unbind(1)
    return (x >= size[1]) | (y >= size[0])


def away_from_padding(anchors: Tensor, size: Size) -> Tensor:
    """anchors: (N, 4) -> the same, those in the padding moved to where no object is, so that none matches."""
    return torch.where(in_padding(anchors, size)[:, None], anchors - 1e5, anchors)


def centred_in(boxes: Tensor, regions: Tensor) -> Tensor:
    """boxes: (N, 4), regions: (M, 4) -> (N,) bool: the centre lies in a region."""
    centre = centres(boxes)[:, None]
    return ((centre >= regions[:, :2]) & (centre < regions[:, 2:])).all(-1).any(1)


def mostly_in(boxes: Tensor, regions: Tensor, size: Size) -> Tensor:
    """boxes: (N, 4), regions: (M, 4) -> (N,) bool: half or more of what the image has of it is in one region."""
    seen = clip_boxes_to_image(boxes, size)
    upper = torch.maximum(seen[:, None, :2], regions[:, :2])
    lower = torch.minimum(seen[:, None, 2:], regions[:, 2:])
    shared = (lower - upper).clamp(min=0).prod(-1)
    area = (seen[:, 2:] - seen[:, :2]).prod(-1)
    return (area > 0) & (shared >= 0.5 * area[:, None]).any(1)


class _Width(nn.Module):
    """Stands where torchvision's detectors expect a backbone, of which they read the width only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


class _FcosLayers(FCOSHead):
    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Torchvision's; the focal loss of background with probability 0 is 0, and so is its gradient."""
        ignored = torch.stack(
            [
                (match < 0) & centred_in(each, target["ignored"])
                for match, each, target in zip(matched_idxs, anchors, targets, strict=True)
            ]
        )
        logits = head_outputs["cls_logits"].masked_fill(ignored[..., None], -1e4)
        outputs = {**head_outputs, "cls_logits": logits}
        losses: dict[str, Tensor] = super().compute_loss(targets, outputs, anchors, matched_idxs)
        return losses


def _is_ignored(anchors: Tensor, target: dict[str, Any]) -> Tensor:
    return mostly_in(anchors, target["ignored"], target["size"])


class _RetinaNetLayers(RetinaNetLayers):
    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Torchvision's; ignored anchors are treated as those between an object and background."""
        between = self.classification_head.BETWEEN_THRESHOLDS
        matched_idxs = [
            match.masked_fill((match < 0) & _is_ignored(each, target), between)
            for match, each, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return losses


class _RetinaNet(RetinaNet):
    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Tensor]:
        """Torchvision's, called as FCOS's."""
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors)
        return losses


class OneStageHead(nn.Module):
    """A pyramid and the dense predictions of torchvision's FCOS or RetinaNet."""

    def __init__(self, pyramid: LevelPyramid, detector: FCOS | _RetinaNet) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.detector = detector

    def predict(self, maps: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Maps (B, channels[i], h_i, w_i) -> outputs (B, N, ...) float32 by name, anchors (n_j, 4) a level."""
        levels = self.pyramid(maps)
        outputs = {name: each.float() for name, each in self.detector.head(levels).items()}
        return outputs, self.detector.anchor_generator.levels(levels)  # type: ignore[operator]

    def losses(
        self, maps: list[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Maps (B, channels[i], h_i, w_i), finest first -> scalars float32; the loss is their sum."""
        outputs, levels = self.predict(maps)
        anchors = [away_from_padding(torch.cat(levels), size) for size in sizes]
        plain: Any = [{**target, "size": size} for target, size in zip(targets, sizes, strict=True)]
        losses: dict[str, Tensor] = self.detector.compute_loss(
            plain, outputs, anchors, list(map(len, levels))
        )
        return losses

    def detect(self, maps: list[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Maps (B, channels[i], h_i, w_i), finest first -> the detections of each image, within its size."""
        outputs, levels = self.predict(maps)
        padding = torch.stack([in_padding(torch.cat(levels), size) for size in sizes])
        outputs["cls_logits"] = outputs["cls_logits"].masked_fill(padding[..., None], -torch.inf)
        split: Any = {name: each.split(list(map(len, levels)), dim=1) for name, each in outputs.items()}
        found = self.detector.postprocess_detections(split, [levels] * len(sizes), list(sizes))
        return [_detections(each) for each in found]


def _detections(found: dict[str, Tensor]) -> Detections:
    kept = remove_small_boxes(found["boxes"], _SMALLEST)
    return Detections(found["boxes"], found["scores"], found["labels"]).take(kept)


class FcosHead(OneStageHead):
    """FCOS (Tian et al. 2020): every position of a level predicts classes, a box and its centre-ness."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        width: int = 256,
        finest_stride: int = 8,
        convs: int = 4,
        centre_radius: float = 1.5,
        score_threshold: float = 0.05,
        nms: float = 0.6,
        detections_per_image: int = 100,
        candidates: int = 1000,
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first.

        width: channels of all levels, 64, 96, 128... finest_stride: of the finest level, in pixels; 4 for
        objects below some 16 pixels. convs: before the predictions. centre_radius: in strides, how far from an
        object's centre positions are trained to find it. score_threshold: the square root of class probability
        times centre-ness. nms: IoU above which the less certain of two boxes of one class is dropped.
        candidates: boxes a level before that.
        """
        if width % 32 or width < 64:  # one channel and one position have no variance
            raise ConfigError(
                f"head 'fcos': width {width}; allowed are multiples of 32 from 64 on, for the 32 groups of its norms"
            )
        pyramid = LevelPyramid(
            channels,
            strides,
            width=width,
            finest_stride=finest_stride,
            extra=LastLevelP6P7(width, width),
        )
        detector = FCOS(
            _Width(width),
            num_classes,
            anchor_generator=LevelAnchors(pyramid.strides, [[s] for s in pyramid.strides], [1.0]),
            head=_FcosLayers(width, 1, num_classes, convs),
            center_sampling_radius=centre_radius,
            score_thresh=score_threshold,
            nms_thresh=nms,
            detections_per_img=detections_per_image,
            topk_candidates=candidates,
        )
        super().__init__(pyramid, detector)


class RetinaNetHead(OneStageHead):
    """RetinaNet (Lin et al. 2017): every anchor of a level predicts classes and a box."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        width: int = 256,
        finest_stride: int = 8,
        convs: int = 4,
        anchor_sizes: Sequence[Sequence[float]] | None = None,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        score_threshold: float = 0.05,
        nms: float = 0.5,
        detections_per_image: int = 100,
        candidates: int = 1000,
    ) -> None:
        """As FcosHead's; convs: 1 to 4; score_threshold: of the class probability.

        anchor_sizes: square roots of the anchors' areas in pixels, a list for each level, finest first; None:
        4, 5 and 6.3 strides. aspect_ratios: height / width.
        """
        if not 1 <= convs <= 4:
            raise ConfigError(f"head 'retinanet': convs {convs}; allowed are 1 to 4")
        pyramid = LevelPyramid(
            channels,
            strides,
            width=width,
            finest_stride=finest_stride,
            extra=LastLevelP6P7(width, width),
        )
        sizes = anchor_sizes or [[4 * s * 2 ** (i / 3) for i in range(3)] for s in pyramid.strides]
        anchors = build_anchors(pyramid.strides, sizes, aspect_ratios)
        layers = _RetinaNetLayers(width, anchors.num_anchors_per_location()[0], num_classes)
        for branch in (layers.classification_head, layers.regression_head):
            branch.conv = branch.conv[:convs]
        detector = _RetinaNet(
            _Width(width),
            num_classes,
            anchor_generator=anchors,
            head=layers,
            score_thresh=score_threshold,
            nms_thresh=nms,
            detections_per_img=detections_per_image,
            topk_candidates=candidates,
        )
        super().__init__(pyramid, detector)


def build_anchors(
    strides: Sequence[float], sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]
) -> LevelAnchors:
    """The anchors of each level; all levels share one head and so have equally many sizes."""
    if len(sizes) != len(strides):
        raise ConfigError(
            f"anchor_sizes: {len(sizes)} lists for {len(strides)} levels; give one list a level, finest first "
            f"(strides {', '.join(f'{stride:g}' for stride in strides)})"
        )
    if len(set(map(len, sizes))) > 1 or not sizes[0] or not aspect_ratios:
        raise ConfigError(
            f"anchor_sizes {[list(each) for each in sizes]}, aspect_ratios {list(aspect_ratios)}: "
            "give equally many sizes for each level, and at least one size and ratio"
        )
    return LevelAnchors(strides, sizes, aspect_ratios)


class _RpnLayers(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Torchvision's, in float32: objectness and boxes of each level."""
        objectness, boxes = super().forward(x)
        return [each.float() for each in objectness], [each.float() for each in boxes]


class _Predictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Torchvision's, in float32: class logits and boxes."""
        logits, boxes = super().forward(x)
        return logits.float(), boxes.float()


class _ProposalNetwork(RegionProposalNetwork):
    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Torchvision's; anchors in the padding match nothing, ignored ones are neither (-1)."""
        matchable = [
            away_from_padding(each, target["size"]) for each, target in zip(anchors, targets, strict=True)
        ]
        labels, boxes = super().assign_targets_to_anchors(matchable, targets)
        labels = [
            label.masked_fill((label == 0) & _is_ignored(each, target), -1.0)
            for label, each, target in zip(labels, matchable, targets, strict=True)
        ]
        return labels, boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Torchvision's; 0 where all is ignored, since the mean of nothing is not a number."""
        if not any(bool((label >= 0).any()) for label in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        losses: tuple[Tensor, Tensor] = super().compute_loss(
            objectness, pred_bbox_deltas, labels, regression_targets
        )
        return losses


class FasterRcnnHead(nn.Module):
    """Faster R-CNN (Ren et al. 2015) with a pyramid: anchors propose, pooled features of proposals decide."""

    loss_names: tuple[str, ...] = ("loss_classifier", "loss_box_reg")
    """Of the second stage."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        width: int = 256,
        finest_stride: int = 4,
        convs: int = 1,
        hidden: int = 1024,
        anchor_sizes: Sequence[Sequence[float]] | None = None,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        score_threshold: float = 0.05,
        nms: float = 0.5,
        detections_per_image: int = 100,
        candidates: int = 1000,
    ) -> None:
        """As RetinaNetHead's; anchor_sizes None: 8 strides. convs: of the proposal network. hidden: features of
        a proposal. candidates: proposals of an image, in detection; 2000 in training.
        """
        super().__init__()
        self.pyramid = LevelPyramid(
            channels, strides, width=width, finest_stride=finest_stride, extra=LastLevelMaxPool()
        )
        sizes = anchor_sizes or [[8 * stride] for stride in self.pyramid.strides]
        anchors = build_anchors(self.pyramid.strides, sizes, aspect_ratios)
        self.rpn = _ProposalNetwork(
            anchors,
            _RpnLayers(width, anchors.num_anchors_per_location()[0], convs),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": candidates},
            post_nms_top_n={"training": 2000, "testing": candidates},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            self._pooler(7),
            TwoMLPHead(width * 7**2, hidden),
            _Predictor(hidden, num_classes + 1),
            fg_iou_thresh=_MATCHED,
            bg_iou_thresh=_MATCHED,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms,
            detections_per_img=detections_per_image,
        )
        self._add_branches(width, num_classes)

    def _add_branches(self, width: int, num_classes: int) -> None:
        """What a subclass predicts beside classes and boxes."""

    def _pooler(self, cells: int) -> MultiScaleRoIAlign:
        """Pools cells x cells features of a proposal from the level of its size."""
        strides = self.pyramid.strides[:-1]
        pooler = MultiScaleRoIAlign([str(i) for i in range(len(strides))], cells, sampling_ratio=2)
        # Given, since they are inferred from the first batch otherwise: rounded to powers of two, and wrongly
        # where an image is smaller than a few strides.
        pooler.scales = [1 / stride for stride in strides]
        finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
        pooler.map_levels = LevelMapper(finest, coarsest)
        return pooler

    def losses(
        self, maps: list[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Maps (B, channels[i], h_i, w_i), finest first -> scalars float32; the loss is their sum."""
        self._set_mode(training=True)
        plain: list[dict[str, Any]] = [
            {**target, "labels": target["labels"] + 1, "size": size}
            for target, size in zip(targets, sizes, strict=True)
        ]
        levels = self.pyramid(maps)
        proposals, losses = self.rpn(ImageList(levels[0], list(sizes)), _named(levels), plain)
        proposals = [_without_ignored(each, target) for each, target in zip(proposals, plain, strict=True)]
        if not any(map(len, proposals)) and not any(len(target["boxes"]) for target in targets):
            return losses | dict.fromkeys(self.loss_names, levels[0].float().sum() * 0)
        _, second = self.roi_heads(_named(levels, torch.float32), proposals, list(sizes), plain)
        return {**losses, **second}

    def detect(self, maps: list[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Maps (B, channels[i], h_i, w_i), finest first -> the detections of each image, within its size."""
        self._set_mode(training=False)
        levels = self.pyramid(maps)
        proposals, _ = self.rpn(ImageList(levels[0], list(sizes)), _named(levels))
        found, _ = self.roi_heads(_named(levels, torch.float32), proposals, list(sizes))
        return [self._detections(each, size) for each, size in zip(found, sizes, strict=True)]

    def _set_mode(self, *, training: bool) -> None:
        """Torchvision's two stages look at their mode for whether to return losses; nothing else in them does."""
        self.rpn.train(training)
        self.roi_heads.train(training)

    def _detections(self, found: dict[str, Tensor], size: Size) -> Detections:
        return Detections(found["boxes"], found["scores"], found["labels"] - 1)


def _named(levels: Sequence[Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {str(i): level if dtype is None else level.to(dtype) for i, level in enumerate(levels)}


def _without_ignored(proposals: Tensor, target: dict[str, Any]) -> Tensor:
    """proposals: (N, 4) -> those that aren't mostly in an ignored region, or match an object."""
    ignored = _is_ignored(proposals, target)
    if len(target["boxes"]):
        ignored &= box_iou(target["boxes"], proposals).amax(0) < _MATCHED
    return proposals[~ignored]


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        """Torchvision's, in float32: mask logits."""
        logits: Tensor = super().forward(x)
        return logits.float()


class MaskRcnnHead(FasterRcnnHead):
    """Mask R-CNN (He et al. 2017): Faster R-CNN with a mask of 28 x 28 cells for each detection.

    Its options are FasterRcnnHead's. `losses` needs the targets' masks; `detect` gives masks of the image's size.
    """

    loss_names = (*FasterRcnnHead.loss_names, "loss_mask")

    def _add_branches(self, width: int, num_classes: int) -> None:
        self.roi_heads.mask_roi_pool = self._pooler(14)
        self.roi_heads.mask_head = MaskRCNNHeads(width, (width,) * 4, 1)
        self.roi_heads.mask_predictor = _MaskPredictor(width, width, num_classes + 1)

    def losses(
        self, maps: list[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """As FasterRcnnHead's, with `loss_mask`."""
        if not all("masks" in target for target in targets):
            raise ConfigError(
                "head 'mask_rcnn': the labels are boxes without outlines; "
                "choose head 'faster_rcnn', or give labels with outlines"
            )
        return super().losses(maps, sizes, targets)

    def _detections(self, found: dict[str, Tensor], size: Size) -> Detections:
        masks = paste_masks_in_image(found["masks"], found["boxes"], size)[:, 0]
        return replace(super()._detections(found, size), masks=masks)


DETECTION_HEADS: dict[str, type[nn.Module]] = {
    "fcos": FcosHead,
    "retinanet": RetinaNetHead,
    "faster_rcnn": FasterRcnnHead,
    "mask_rcnn": MaskRcnnHead,
}
"""Built-in heads of detectors; called with (channels, strides, num_classes, *, options)."""
