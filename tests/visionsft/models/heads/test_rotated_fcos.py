"""Rotated FCOS: what positions learn, the losses against integrals, and that it finds turned rectangles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from backbones import create_backbone
from datamodules.objects import Target
from visionsft.errors import ConfigError
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.detection import average_precisions
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.models.detections import Detections
from visionsft.models.detector import create_detector
from visionsft.models.heads.rotated_fcos import (
    Grid,
    RotatedFcosHead,
    _decode,
    _relative,
    angle_difference,
    assign,
    build_grid,
    gaussian_distance,
)
from visionsft.models.rotated import canonicalise, enclose, rotated_iou, to_corners

STRIDES = (8, 16, 32, 64, 128)
SIDE = 128


def make_grid(height: int, width: int) -> Grid:
    return build_grid(
        [torch.empty(1, 1, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES], STRIDES
    )


def make_target(turned: Sequence[Sequence[float]], ignored: Sequence[Sequence[float]] = ()) -> Target:
    rows = torch.tensor(turned, dtype=torch.float32).reshape(-1, 5)
    return Target(
        boxes=enclose(rows),
        labels=torch.arange(len(rows)) % 2,
        ignored=torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
        turned=rows,
    )


def make_head(**options: Any) -> RotatedFcosHead:
    torch.manual_seed(0)
    return RotatedFcosHead((48, 64, 64), (8, 16, 32), 2, **{"width": 64, "convs": 2, **options})


def make_maps(height: int, width: int, batch: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES[:3]]
    return [torch.randn(batch, c, *size, generator=draw) for c, size in zip((48, 64, 64), sizes, strict=True)]


# -------------------------------------------------------------------------------------------------- assignment


@given(
    st.floats(0, 255.9), st.floats(0, 191.9), st.floats(0.5, 200), st.floats(0.01, 1), st.floats(-1.57, 1.57)
)
def test_every_object_whose_middle_is_seen_is_learnt(
    x: float, y: float, w: float, ratio: float, angle: float
) -> None:
    grid = make_grid(192, 256)
    aim = assign(grid, [(192, 256)], [make_target([[x, y, w, w * ratio, angle]])], radius=1.5)
    found = (aim.labels[0] == 0).nonzero()[:, 0]
    assert len(found) == len(aim.boxes) == len(aim.centreness)
    # the middle's own position on a level may lie beside an image that is no whole number of strides wide
    if math.sqrt(w * w * ratio) <= 8 * 64:
        assert len(found)
    assert len(grid.strides[found].unique()) == 1  # one level
    assert ((aim.centreness > 0) & (aim.centreness <= 1)).all()


def test_positions_are_in_the_object_near_its_middle() -> None:
    grid, box = make_grid(128, 128), [64.0, 60, 90, 20, 0.6]
    aim = assign(grid, [(128, 128)], [make_target([box])], radius=1.5)
    found = aim.labels[0] == 0
    points = grid.points[found]
    low, high = torch.tensor([box]), torch.tensor([[*box[:2], 24.0, 20, 0.6]])
    for frame in (low, high):  # within the box, and 1.5 strides of 8 along its sides
        inside = cv2.boxPoints(
            (tuple(frame[0, :2].tolist()), tuple(frame[0, 2:4].tolist()), math.degrees(0.6))
        )
        assert all(cv2.pointPolygonTest(inside, tuple(p), False) >= 0 for p in points.tolist())
    assert set(grid.strides[found].tolist()) == {8.0}
    best = points[aim.centreness.argmax()]
    assert (best - torch.tensor(box[:2])).norm() == (points - torch.tensor(box[:2])).norm(dim=1).min()


def test_larger_objects_belong_to_coarser_levels_and_the_smallest_wins() -> None:
    grid = make_grid(256, 256)
    large, small = [128.0, 128, 200, 120, 0.3], [128.0, 128, 150, 3, 0.3]
    aim = assign(grid, [(256, 256)], [make_target([large])], radius=1.5)
    assert set(grid.strides[aim.labels[0] == 0].tolist()) == {32.0}
    both = assign(grid, [(256, 256)], [make_target([small, [128.0, 128, 40, 30, 0]])], radius=1.5)
    shared = (grid.points[both.labels[0] >= 0] - 128).abs().amax(1) < 2
    assert torch.equal(both.boxes[shared][:, 3], torch.full((int(shared.sum()),), 3.0))


def test_positions_and_objects_as_one_by_one() -> None:
    """Against a loop over all pairs, with objects that overlap, lie beside the image or have no size to speak of."""
    draw = torch.Generator().manual_seed(0)
    scale, start = torch.tensor([260.0, 220, 90, 90, 3]), torch.tensor([-30.0, -30, 0.1, 0.1, -1.5])
    rows = torch.rand((80, 5), generator=draw) * scale + start
    grid, boxes = make_grid(192, 256), canonicalise(rows)
    aim = assign(grid, [(160, 200)], [make_target(rows.tolist())], radius=1.5)
    labels, owners = [], []
    for (x, y), stride in zip(grid.points.tolist(), grid.strides.tolist(), strict=True):
        chosen, least = None, math.inf
        for i, (cx, cy, w, h, angle) in enumerate(boxes.tolist()):
            level = next((s for s in STRIDES if math.sqrt(w * h) <= 8 * s), STRIDES[-1])
            reach = 1.5 * stride if 0 <= cx < 200 and 0 <= cy < 160 else math.inf
            along = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
            across = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
            limits = [min(max(side / 2, 0.71 * stride), reach) for side in (w, h)]
            if level == stride and abs(along) < limits[0] and abs(across) < limits[1] and w * h < least:
                chosen, least = i, w * h
        padding = x >= 200 or y >= 160
        labels.append(-2 if padding else -1 if chosen is None else chosen % 2)
        owners += [] if padding or chosen is None else [chosen]
    assert aim.labels[0].tolist() == labels
    assert len(owners) > 100
    torch.testing.assert_close(aim.boxes, boxes[owners])


def test_padding_and_ignored_regions_are_not_counted() -> None:
    grid = make_grid(128, 128)
    target = make_target([[40, 40, 30, 20, 0.4]], [[20, 20, 70, 70]])
    (labels,) = assign(grid, [(100, 80)], [target], radius=1.5).labels
    x, y = grid.points.unbind(1)
    padding = (x >= 80) | (y >= 100)
    region = (x > 20) & (x < 70) & (y > 20) & (y < 70)
    assert (labels[padding] == -2).all()
    assert (labels[~padding & ~region] == -1).all()
    assert set(labels[region & ~padding].tolist()) == {0, -2}  # the object in it is still learnt


def test_what_is_predicted_of_a_box_gives_the_box() -> None:
    grid = make_grid(128, 128)
    target = make_target([[30, 30, 40, 20, 1.2], [90, 90, 20, 30, -0.4], [100, 30, 25, 25, 0.9]])
    aim = assign(grid, [(128, 128)], [target], radius=1.5)
    positive = aim.labels >= 0
    decoded = _decode(_relative(aim.boxes, grid, positive), grid, positive[0].nonzero()[:, 0])
    torch.testing.assert_close(rotated_iou(decoded, aim.boxes).diag(), torch.ones(len(decoded)))
    torch.testing.assert_close(decoded[:, 2:4], canonicalise(aim.boxes)[:, 2:4])


# ------------------------------------------------------------------------------------------------------ losses


def row(x: float, y: float, w: float, h: float, angle: float, length: float = 1.0) -> Tensor:
    return torch.tensor([[x, y, w, h, length * math.cos(2 * angle), length * math.sin(2 * angle)]])


def gaussian(x: float, y: float, w: float, h: float, angle: float) -> Any:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return multivariate_normal([x, y], turn @ np.diag([w * w / 12, h * h / 12]) @ turn.T)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0, 6, 2, 0.3), (0.5, -0.4, 5, 3, 1.1)),
        ((1, 0, 4, 4, 0), (0, 1, 8, 2, -0.7)),
        ((0, 0, 9, 3, 1), (4, 1, 9, 3, 1)),
    ],
)
def test_distance_is_that_of_the_integral(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    x, y = np.meshgrid(np.linspace(-25, 25, 1001), np.linspace(-25, 25, 1001))
    points = np.stack([x, y], -1)
    overlap = np.sqrt(gaussian(*one).pdf(points) * gaussian(*other).pdf(points)).sum() * 0.05**2
    assert gaussian_distance(row(*one), row(*other)).item() == pytest.approx(math.sqrt(1 - overlap), abs=1e-3)
    assert gaussian_distance(row(*one, 3.0), row(*other)).item() == pytest.approx(
        math.sqrt(1 - overlap), abs=1e-3
    )


def test_periods_of_the_losses() -> None:
    box = row(0, 0, 6, 2, 0.3)
    swapped = row(0, 0, 2, 6, 0.3 + math.pi / 2)
    assert gaussian_distance(box, swapped).item() < 2e-3
    long, square = row(0, 0, 60, 2, 0.3), row(0, 0, 5, 5, 0.3)
    for truth, same in ((long, math.pi), (square, math.pi / 2)):
        for turns in (0, 1, -1):
            assert angle_difference(row(0, 0, 3, 3, 0.3 + turns * same), truth).item() == pytest.approx(
                0, abs=1e-5
            )
        worst = angle_difference(row(0, 0, 3, 3, 0.3 + same / 2), truth).item()
        assert worst > 0.99


def test_a_square_learns_its_angle_and_a_long_box_leaves_the_wrong_one() -> None:
    truth = row(0, 0, 5, 5, 0.3)
    for function, expected in ((gaussian_distance, False), (angle_difference, True)):
        found = row(0, 0, 5, 5, 0.5).requires_grad_()
        function(found, truth).sum().backward()
        assert (found.grad[0, 4:].norm().item() > 1e-3) is expected
    across = row(0, 0, 60, 2, math.pi / 2).requires_grad_()
    angle_difference(across, row(0, 0, 60, 2, 0)).sum().backward()
    assert across.grad[0, 4:].norm() > 0.1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_losses_are_finite_float32_without_objects_and_with(dtype: torch.dtype | None) -> None:
    head, maps = make_head(), make_maps(96, 128)
    empty, full = make_target([]), make_target([[40, 40, 30, 10, 0.4], [80, 50, 1e-3, 1e-4, 0]])
    for targets in ([empty, empty], [empty, full]):
        head.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            losses = head.losses(maps, [(96, 128), (90, 100)], targets)
        assert set(losses) == {"classification", "boxes", "angles", "centreness"}
        assert all(each.dtype == torch.float32 and each.isfinite() for each in losses.values())
        assert all(
            (each > 0).item() is (targets[1] is full)
            for name, each in losses.items()
            if name != "classification"
        )
        sum(losses.values(), torch.zeros(())).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_class_outputs_in_ignored_regions_and_padding_have_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, maps = make_head(), make_maps(128, 128, 1)
    logits, *others, grid = head.predict(maps)
    logits = logits.detach().requires_grad_()
    monkeypatch.setattr(head, "predict", lambda maps: (logits, *others, grid))
    head.losses(maps, [(100, 128)], [make_target([], [[0, 0, 64, 64]])])["classification"].backward()
    x, y = grid.points.unbind(1)
    silent = ((x < 64) & (y < 64)) | (y >= 100)
    touched = logits.grad[0].abs().sum(1) > 0
    assert torch.equal(touched, ~silent)


# ---------------------------------------------------------------------------------------------------- finding


def test_detections_are_within_the_image_and_the_limits() -> None:
    head = make_head(score_threshold=0.0, detections_per_image=7)
    for found, (height, width) in zip(
        head.detect(make_maps(128, 128), [(128, 128), (70, 50)]), [(128, 128), (70, 50)], strict=True
    ):
        assert len(found) == 7
        assert found.turned is not None
        x1, y1, x2, y2 = found.boxes.unbind(1)
        assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x2 > x1) & (y2 > y1)).all()
        assert (found.scores.diff() <= 0).all()
        assert torch.equal(found.turned, canonicalise(found.turned))
        overlap = rotated_iou(found.turned, found.turned).fill_diagonal_(0) * (
            found.labels[:, None] == found.labels
        )
        assert overlap.max() <= 0.2


def test_nothing_is_found_under_the_threshold() -> None:
    (found,) = make_head(score_threshold=0.9).detect(make_maps(64, 64, 1), [(64, 64)])
    assert found.turned is not None
    assert (found.boxes.shape, found.turned.shape) == ((0, 4), (0, 5))


def test_it_is_a_detector_s_head() -> None:
    backbone = create_backbone("test_resnet", weights="none")
    model = create_detector(
        backbone,
        2,
        head="visionsft.models.heads.rotated_fcos:RotatedFcosHead",
        options={"width": 32, "convs": 1},
    )
    image = torch.randn(2, 3, 96, 128)
    losses = model.losses(
        image, [(96, 128), (80, 128)], [make_target([[50, 50, 30, 10, 0.5]]), make_target([])]
    )
    assert sum(losses.values()).isfinite()
    assert [each.turned.shape[1] for each in model.eval()(image)] == [5, 5]
    upright = {name: each for name, each in make_target([]).items() if name != "turned"}
    with pytest.raises(ConfigError, match="upright boxes only"):
        model.losses(image[:1], [(96, 128)], [upright])
    with pytest.raises(ConfigError, match="width 20 is no multiple of 32"):
        make_head(width=20)


def make_scene(rng: np.random.Generator, count: int) -> tuple[Tensor, Target]:
    """(3, SIDE, SIDE) noise with oblong rectangles of two classes, long ones and wide ones, that don't meet."""
    image = rng.normal(0, 0.3, (3, SIDE, SIDE)).astype(np.float32)
    boxes = torch.empty(0, 5)
    for _ in range(200):
        kind = len(boxes) % 2
        w = rng.uniform(28, 50)
        h = w / (rng.uniform(1.5, 2) if kind else rng.uniform(2.5, 4))
        box = torch.tensor([[*rng.uniform(w / 2, SIDE - w / 2, 2), w, h, rng.uniform(-1.57, 1.57)]]).float()
        grown = box + torch.tensor([0, 0, 4, 4, 0])
        if len(boxes) == count or rotated_iou(grown, boxes).sum() > 0:
            continue
        boxes = torch.cat([boxes, box])
        drawn = np.zeros((SIDE, SIDE), np.uint8)
        cv2.fillPoly(drawn, [np.round((to_corners(box)[0].numpy() - 0.5) * 16).astype(np.int32)], 1, shift=4)
        image[:, drawn > 0] += np.array([[-0.5], [1], [0.5]] if kind else [[1], [-0.5], [0.5]], np.float32)
    return torch.from_numpy(image), make_target(boxes.tolist())


class SmallBackbone(nn.Module):
    """Maps of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(self.step(3, 16), self.step(16, 32), self.step(32, 48))
        self.steps = nn.ModuleList([self.step(48, 64), self.step(64, 64)])

    def step(self, inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels, stride in ((inputs, 2), (outputs, 1)):
            layers += [nn.Conv2d(channels, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.stem(image)]
        for step in self.steps:
            maps.append(step(maps[-1]))
        return maps


def train(scenes: list[tuple[Tensor, Target]], steps: int) -> nn.Sequential:
    """With four scenes a step."""
    torch.manual_seed(0)
    model, rng = nn.Sequential(SmallBackbone(), make_head()), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = [scenes[i] for i in rng.choice(len(scenes), 4, replace=False)]
        maps = model[0](torch.stack([image for image, _ in chosen]))
        losses = model[1].losses(maps, [(SIDE, SIDE)] * 4, [target for _, target in chosen])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()
        schedule.step()
    return model


@torch.no_grad()
def detect(model: nn.Sequential, scenes: list[tuple[Tensor, Target]]) -> list[Detections]:
    return [model[1].detect(model[0](image[None]), [(SIDE, SIDE)])[0] for image, _ in scenes]


def test_a_few_scenes_are_learnt_by_heart() -> None:
    rng = np.random.default_rng(0)
    scenes = [make_scene(rng, 4) for _ in range(4)]
    for found, (_, target) in zip(detect(train(scenes, 100), scenes), scenes, strict=True):
        assert len(target["turned"]) == 4
        same = target["labels"][:, None] == found.labels
        best, index = (rotated_iou(target["turned"], found.turned) * same).max(1)
        assert (best > 0.5).all()
        turn = found.turned[index, 4] - target["turned"][:, 4]
        assert (torch.remainder(turn + math.pi / 2, math.pi) - math.pi / 2).abs().max() < math.radians(5)


@pytest.mark.slow
def test_turned_rectangles_are_found_in_new_scenes() -> None:
    rng = np.random.default_rng(0)
    model = train([make_scene(rng, 4) for _ in range(200)], 300)
    scenes = [make_scene(rng, 4) for _ in range(50)]
    rows = [
        ImageBoxes.of(found, target) for found, (_, target) in zip(detect(model, scenes), scenes, strict=True)
    ]
    (matches,) = match_detections(BoxTable.gather(rows, 2), thresholds=(0.5, 0.75))
    precision = average_precisions(matches)
    print(f"AP50 {precision[0].round(3)}, AP75 {precision[1].round(3)} of {len(scenes)} scenes")
    assert (precision[0] > 0.9).all()
