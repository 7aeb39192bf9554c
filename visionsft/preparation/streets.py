"""Streets: procedural road scenes as a camera behind the windscreen sees them, with their class masks.

A drive is a street in metres: a winding road with houses, trees, lamp posts, cars and people beside it. A
frame is that street seen from one point: the ground is found pixel by pixel, what is upright is painted from
far to near. It is drawn at twice its size and then reduced, as optics would mix the colours at an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.float32]
"""(H, W, 3) red, green, blue, 0..255."""
Labels = NDArray[np.uint8]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]
"""Metres: to the side of the road's middle (right is positive), up, along the road."""

UNLABELLED = 255
"""Value of the own bonnet."""


class Thing(NamedTuple):
    """A class of the masks."""

    name: str
    value: int
    colour: str


THINGS = (
    Thing("sky", 0, "#87b5e5"),
    Thing("building", 1, "#8c4a4a"),
    Thing("road", 2, "#6b4f7a"),
    Thing("lane marking", 3, "#f2f2f2"),
    Thing("pavement", 4, "#e08fd0"),
    Thing("vegetation", 5, "#6b8e23"),
    Thing("car", 6, "#1f3f9c"),
    Thing("pole", 7, "#c9c94f"),
    Thing("pedestrian", 8, "#dc143c"),
)
SKY, BUILDING, ROAD, MARKING, PAVEMENT, VEGETATION, CAR, POLE, PEDESTRIAN = (thing.value for thing in THINGS)

_ROUGHNESS = np.array([0, 0.02, 0.035, 0.05, 0.05, 0.17, 0.02, 0.03, 0.06], np.float32)  # of each class

_EYE = 1.4  # metres above the road
_NEAR, _FAR = 2.0, 160.0
_LANE = 3.4
_KERB, _WALL = _LANE + 1.9, _LANE + 5.2  # metres from the road's middle; between them the pavement


@dataclass(frozen=True)
class Frame:
    """One picture and its classes."""

    image: NDArray[np.uint8]
    """(H, W, 3) red, green, blue."""
    labels: Labels
    """(H, W) values of `THINGS`; 255 is unlabelled."""


# ------------------------------------------------------------------------------------------- drive


class _Object(NamedTuple):
    along: float
    """Metres along the road; speed moves it."""
    speed: float
    """Metres a frame."""
    paint: Callable[[_View, float], None]
    """Paints it at the given distance."""


@dataclass
class Drive:
    """A street with everything on it, and the light of the day."""

    seed: Sequence[int]
    objects: list[_Object] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.bend, self.phase = rng.uniform(2, 9), rng.uniform(0, 6)  # metres, radians
        self.light = np.float32(rng.uniform(0.72, 1.05) * np.array([1, 1, 1]) + rng.normal(0, 0.035, 3))
        overcast, dim = rng.uniform(0, 1), rng.uniform(0.8, 1.0)
        self.haze = np.float32(dim * np.array([185 + 15 * overcast, 198 + 8 * overcast, 215]))
        self.blue = np.float32(dim * np.array([80 + 90 * overcast, 130 + 50 * overcast, 195 + 5 * overcast]))
        self.marks = bool(rng.random() < 0.8)
        self.shadow = float(rng.choice([-1, 1]) * rng.uniform(0.3, 3.5))  # metres from the middle
        for side in (-1, 1):
            self._line_with_houses(rng, side)
            self._line_with_furniture(rng, side)
        self._fill_with_traffic(rng)

    def middle(self, along: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Where the road's middle is, in metres to the right, at a distance along the street."""
        return self.bend * np.sin(np.asarray(along) / 85 + self.phase)

    def _line_with_houses(self, rng: Generator, side: int) -> None:
        built, along = rng.uniform(0.55, 0.95), -20.0
        while along < 700:
            length = rng.uniform(8, 22)
            if rng.random() < built:
                house = _House.draw(rng, side, length)
                self.objects.append(_Object(along + length, 0, house.paint))
            else:
                for _ in range(3):
                    tree = _Tree.draw(rng, side * rng.uniform(_WALL + 1, _WALL + 8))
                    self.objects.append(_Object(along + rng.uniform(0, length), 0, tree.paint))
            along += length + (rng.uniform(2, 9) if rng.random() < 0.3 else 0)

    def _line_with_furniture(self, rng: Generator, side: int) -> None:
        """Lamp posts, street trees, parked cars and people on the pavement."""
        trees, parked, people = rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.55), rng.uniform(0.2, 0.9)
        for along in np.arange(rng.uniform(0, 8), 700, 8.0):
            at = along + rng.uniform(-1, 1, 3)
            if along % 24 < 8:
                self.objects.append(_Object(at[0], 0, _Lamp(side, rng.uniform(5.5, 8)).paint))
            elif rng.random() < trees:
                self.objects.append(_Object(at[1], 0, _Tree.draw(rng, side * (_KERB + 0.9)).paint))
            if rng.random() < parked:
                car = _Car.draw(rng, side * (_LANE + 0.7))
                self.objects.append(_Object(at[2], 0, car.paint))
            for _ in range(rng.poisson(people)):
                person = _Person.draw(rng, side * rng.uniform(_KERB, _WALL - 0.5))
                self.objects.append(
                    _Object(along + rng.uniform(-4, 4), rng.choice([-1, 1]) * 0.7, person.paint)
                )

    def _fill_with_traffic(self, rng: Generator) -> None:
        for along in np.arange(15, 900, 45.0):
            if rng.random() < 0.7:
                self.objects.append(
                    _Object(along + rng.uniform(0, 20), -7, _Car.draw(rng, -_LANE / 2, oncoming=True).paint)
                )
            if rng.random() < 0.5:
                self.objects.append(_Object(along + rng.uniform(5, 25), 5, _Car.draw(rng, _LANE / 2).paint))

    def frame(self, number: int, *, height: int, width: int) -> Frame:
        """The street as seen in frame `number`, five metres further on than the frame before."""
        rng = np.random.default_rng([*self.seed, number])
        view = _View(self, here=5.0 * number, height=2 * height, width=2 * width, pitch=rng.normal(0, 0.004))
        view.paint_ground_and_sky(rng)
        distances = [(thing.along + thing.speed * number - view.here, thing) for thing in self.objects]
        for distance, thing in sorted(distances, key=lambda pair: -pair[0]):
            if 0 < distance < _FAR:
                thing.paint(view, distance)
        return view.finish(rng)


# -------------------------------------------------------------------------------------------- view


class _View:
    """The picture being painted: a pinhole camera in the right lane that looks along the road."""

    def __init__(self, drive: Drive, *, here: float, height: int, width: int, pitch: float) -> None:
        self.drive, self.here = drive, here
        self.focal = 0.85 * width
        self.x = float(drive.middle(here)) + _LANE / 2
        self.heading = float(drive.middle(here + 12) - drive.middle(here)) / 12  # small-angle tangent
        self.centre, self.horizon = width / 2, height * 0.46 + self.focal * pitch
        self.image: Picture = np.zeros((height, width, 3), np.float32)
        self.labels: Labels = np.zeros((height, width), np.uint8)

    def project(self, point: Point) -> tuple[float, float]:
        """Column and row of a point that is `point[2]` metres ahead."""
        side, up, ahead = point
        ahead = max(ahead, _NEAR)
        right = float(self.drive.middle(self.here + ahead)) + side - self.x - self.heading * ahead
        return self.centre + self.focal * right / ahead, self.horizon + self.focal * (_EYE - up) / ahead

    def polygon(self, points: Sequence[Point], colour: Colour | Picture, value: int) -> None:
        """Fill a polygon of points in metres; what is far away fades into the haze."""
        corners = np.array([self.project(point) for point in points])
        corners = np.round(np.clip(corners, -20000, 20000) * 16).astype(np.int32)
        clear = np.exp(-max(point[2] for point in points) / 260)
        shade = clear * np.asarray(colour, np.float32) * self.drive.light + (1 - clear) * self.drive.haze
        cv2.fillPoly(self.image, [corners], shade.tolist(), lineType=cv2.LINE_8, shift=4)
        cv2.fillPoly(self.labels, [corners], value, lineType=cv2.LINE_8, shift=4)

    def upright(self, side: float, up: float, width: float, height: float, ahead: float) -> list[Point]:
        """Corners of a rectangle that faces the camera, its lower left corner at (side, up)."""
        return [
            (side, up, ahead),
            (side + width, up, ahead),
            (side + width, up + height, ahead),
            (side, up + height, ahead),
        ]

    def paint_ground_and_sky(self, rng: Generator) -> None:
        height, width = self.labels.shape
        rows, columns = np.mgrid[:height, :width]
        self._paint_sky(rng, rows)
        below = rows > self.horizon + self.focal * _EYE / 400
        ahead = self.focal * _EYE / np.maximum(rows - self.horizon, 1e-3)
        right = (columns - self.centre) * ahead / self.focal + self.x + self.heading * ahead
        side = right - self.drive.middle(self.here + ahead)
        along = self.here + ahead
        dashed = (np.abs(side) < 0.10) & (along % 9 < 4) & self.drive.marks
        edge = np.abs(np.abs(side) - _LANE + 0.15) < 0.09
        for where, value, colour in (
            (np.abs(side) >= _WALL, VEGETATION, (82, 104, 52)),
            (np.abs(side) < _WALL, PAVEMENT, (150, 145, 138)),
            (np.abs(side) < _KERB, PAVEMENT, (122, 120, 118)),
            (np.abs(side) < _KERB - 0.25, ROAD, (84, 84, 88)),
            (edge & self.drive.marks | dashed, MARKING, (205, 203, 196)),
        ):
            self.labels[below & where] = value
            self.image[below & where] = np.array(colour, np.float32) * self.drive.light
        shaded = below & (side * np.sign(self.drive.shadow) > abs(self.drive.shadow))
        self.image[shaded] *= 0.68  # the houses' shadow
        fade = np.exp(-ahead / 260)[below][:, None].astype(np.float32)
        self.image[below] = fade * self.image[below] + (1 - fade) * self.drive.haze

    def _paint_sky(self, rng: Generator, rows: NDArray[np.int64]) -> None:
        self.labels[:] = SKY
        height = np.asarray(np.clip(1 - rows / self.horizon, 0, 1), np.float32)[..., None]
        self.image[:] = self.drive.haze + height**0.7 * (self.drive.blue - self.drive.haze)
        clouds = _speckle(rng, self.labels.shape, size=40, stretch=3)
        self.image += 22 * np.clip(clouds, 0, 2)[..., None] * height

    def finish(self, rng: Generator) -> Frame:
        """Texture, the own bonnet, optics and noise; then reduce to half the size."""
        coarse, fine = (_speckle(rng, self.labels.shape, size=size, stretch=1) for size in (9, 2))
        rough = _ROUGHNESS[self.labels]
        self.image *= (1 + rough * (0.6 * coarse + fine))[..., None]
        self._paint_bonnet()
        height, width = self.labels.shape
        blurred = cv2.GaussianBlur(self.image, (0, 0), 0.8)
        half = cv2.resize(blurred, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        noise = rng.standard_normal(half.shape, dtype=np.float32)
        return Frame(
            np.clip(half + 2.5 * noise, 0, 255).astype(np.uint8), np.ascontiguousarray(self.labels[::2, ::2])
        )

    def _paint_bonnet(self) -> None:
        height, width = self.labels.shape
        centre, axes = (width // 2, round(1.03 * height)), (round(0.46 * width), round(0.12 * height))
        colour = (self.drive.haze * 0.25).tolist()
        cv2.ellipse(self.image, centre, axes, 0, 0, 360, colour, -1)
        cv2.ellipse(self.labels, centre, axes, 0, 0, 360, UNLABELLED, -1)


def _speckle(rng: Generator, shape: tuple[int, int], *, size: float, stretch: float) -> NDArray[np.float32]:
    """(H, W) noise of deviation 1 whose grains are `size` pixels high and `stretch` times as wide."""
    height, width = shape
    grains = rng.standard_normal((int(height / size) + 2, int(width / size / stretch) + 2), dtype=np.float32)
    noise = cv2.resize(grains, (width, height), interpolation=cv2.INTER_CUBIC)
    return noise / noise.std()


# ----------------------------------------------------------------------------------------- objects


def _vary(rng: Generator, colours: Sequence[Colour], spread: float = 10) -> Colour:
    r, g, b = np.array(colours[int(rng.integers(len(colours)))]) + rng.normal(0, spread) + rng.normal(0, 4, 3)
    return float(r), float(g), float(b)


def _dim(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


_PLASTER: list[Colour] = [
    (188, 170, 140),
    (170, 150, 130),
    (150, 95, 75),
    (160, 160, 158),
    (196, 186, 165),
    (128, 80, 66),
]
_PAINT: list[Colour] = [
    (35, 37, 40),
    (150, 152, 155),
    (205, 205, 205),
    (120, 25, 25),
    (30, 50, 105),
    (70, 75, 80),
]
_CLOTHES: list[Colour] = [
    (45, 50, 70),
    (120, 40, 40),
    (70, 80, 60),
    (150, 140, 120),
    (30, 30, 32),
    (160, 110, 50),
]


@dataclass(frozen=True)
class _House:
    side: int
    length: float
    height: float
    set_back: float
    wall: Colour
    windows: float  # metres between two

    @classmethod
    def draw(cls, rng: Generator, side: int, length: float) -> _House:
        height, set_back = rng.uniform(6, 17), rng.choice([0.0, rng.uniform(0, 4)])
        return cls(side, length, height, set_back, _vary(rng, _PLASTER), rng.uniform(2.2, 3.5))

    def paint(self, view: _View, ahead: float) -> None:
        """Painted at its far end: the gable that faces the camera, then the front with its windows."""
        start, end = max(ahead - self.length, _NEAR), ahead
        wall = self.side * (_WALL + self.set_back)
        lit = 1.0 if self.side * view.drive.shadow < 0 else 0.72
        if ahead - self.length >= _NEAR:
            depth = self.side * 12
            gable = view.upright(min(wall, wall + depth), 0, abs(depth), self.height, start)
            view.polygon(gable, _dim(self.wall, 0.85), BUILDING)
        view.polygon(_along(wall, 0, self.height, start, end), _dim(self.wall, lit), BUILDING)
        view.polygon(_along(wall, 0, 0.7, start, end), _dim(self.wall, lit * 0.7), BUILDING)  # plinth
        view.polygon(
            _along(wall, self.height - 0.4, self.height, start, end), _dim(self.wall, lit * 0.6), BUILDING
        )
        if end > 90:
            return  # windows are smaller than a pixel there
        for floor in np.arange(1.1, self.height - 2, 3.0):
            for offset in np.arange(1.0, self.length - 1.2, self.windows):
                window = ahead - self.length + offset
                if window > _NEAR:
                    pane = _along(wall, floor, floor + 1.5, window, window + 1.1)
                    view.polygon(pane, _dim((70, 80, 92), 0.6 + 0.5 * lit), BUILDING)


def _along(side: float, bottom: float, top: float, start: float, end: float) -> list[Point]:
    """Corners of an upright rectangle that runs along the street."""
    return [(side, bottom, start), (side, bottom, end), (side, top, end), (side, top, start)]


@dataclass(frozen=True)
class _Tree:
    side: float
    trunk: float
    radius: float
    green: Colour
    blobs: tuple[tuple[float, float, float, float], ...]  # right, up, size (shares of the radius), brightness

    @classmethod
    def draw(cls, rng: Generator, side: float) -> _Tree:
        blobs = [
            (*rng.normal(0, 0.45, 2), rng.uniform(0.35, 0.65), rng.uniform(0.7, 1.25)) for _ in range(16)
        ]
        blobs.sort(key=lambda blob: blob[1])  # the upper ones get the light
        green = _vary(rng, [(62, 88, 38), (74, 96, 44), (50, 74, 36), (96, 98, 46)], 6)
        return cls(side, rng.uniform(1.8, 3), rng.uniform(1.3, 2.6), green, tuple(blobs))

    def paint(self, view: _View, ahead: float) -> None:
        if ahead < _NEAR:
            return
        view.polygon(view.upright(self.side - 0.14, 0, 0.28, self.trunk + 1, ahead), (66, 52, 40), VEGETATION)
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        for right, up, size, light in self.blobs:
            x, y = self.side + right * self.radius, self.trunk + self.radius * (1 + 0.8 * up)
            radius = size * self.radius * (1 + 0.12 * np.sin(5 * turn + 9 * right))
            ring = [(x + r * np.cos(t), y + r * np.sin(t), ahead) for r, t in zip(radius, turn, strict=True)]
            view.polygon(ring, _dim(self.green, light * (0.85 + 0.3 * up)), VEGETATION)


@dataclass(frozen=True)
class _Lamp:
    side: int
    height: float

    def paint(self, view: _View, ahead: float) -> None:
        if ahead < _NEAR:
            return
        at = self.side * (_KERB + 0.35)
        grey = (88, 90, 92)
        view.polygon(view.upright(at - 0.075, 0, 0.15, self.height, ahead), grey, POLE)
        arm = view.upright(min(at, at - self.side * 1.6), self.height - 0.14, 1.6, 0.14, ahead)
        view.polygon(arm, grey, POLE)


@dataclass(frozen=True)
class _Car:
    side: float
    paint_colour: Colour
    height: float
    length: float
    oncoming: bool

    @classmethod
    def draw(cls, rng: Generator, side: float, *, oncoming: bool = False) -> _Car:
        return cls(side, _vary(rng, _PAINT, 8), rng.uniform(1.4, 1.9), rng.uniform(3.8, 4.7), oncoming)

    def paint(self, view: _View, ahead: float) -> None:
        """Painted at its near end: shadow (which is road), visible flank, end that faces the camera."""
        start, end = ahead, ahead + self.length
        if start < _NEAR:
            return
        left, width, belt = self.side - 0.9, 1.8, 0.55 * self.height
        ground = [(left - 0.1, 0, start - 0.3), (left + width + 0.1, 0, start - 0.3)]
        view.polygon([*ground, (left + width + 0.1, 0, end), (left - 0.1, 0, end)], (28, 28, 30), ROAD)
        flank = left if self.side > _LANE / 2 else left + width
        body, glass = _dim(self.paint_colour, 0.8), (38, 44, 50)
        view.polygon(_along(flank, 0.22, belt, start, end), body, CAR)
        inner = flank + np.sign(self.side - flank) * 0.28
        cabin = [(flank, belt, start), (flank, belt, end - 1.0), (inner, self.height, end - 1.7)]
        view.polygon([*cabin, (inner, self.height, start + 0.4)], glass, CAR)
        for axle in (start + 0.75, end - 0.8):
            view.polygon(_along(flank, 0.0, 0.58, axle - 0.3, axle + 0.3), (22, 22, 23), CAR)
        self._paint_end(view, left, width, belt, start)

    def _paint_end(self, view: _View, left: float, width: float, belt: float, start: float) -> None:
        for x in (left + 0.08, left + width - 0.33):
            view.polygon(view.upright(x, 0, 0.25, 0.4, start), (20, 20, 21), CAR)  # tyres
        view.polygon(view.upright(left, 0.25, width, belt - 0.25, start), self.paint_colour, CAR)
        roof = [(left, belt, start), (left + width, belt, start)]
        top = [(left + width - 0.28, self.height, start + 0.4), (left + 0.28, self.height, start + 0.4)]
        view.polygon([*roof, *top], self.paint_colour, CAR)
        pane = [(left + 0.2, belt + 0.05, start), (left + width - 0.2, belt + 0.05, start)]
        top = [(left + width - 0.36, self.height - 0.1, start), (left + 0.36, self.height - 0.1, start)]
        view.polygon([*pane, *top], (58, 66, 74), CAR)
        lights = (235, 235, 215) if self.oncoming else (165, 22, 20)
        for x in (left + 0.08, left + width - 0.36):
            view.polygon(view.upright(x, belt - 0.25, 0.28, 0.16, start), lights, CAR)
        view.polygon(view.upright(left + 0.65, 0.42, 0.5, 0.12, start), (200, 200, 190), CAR)  # number plate


@dataclass(frozen=True)
class _Person:
    side: float
    height: float
    coat: Colour
    trousers: Colour
    stride: float

    @classmethod
    def draw(cls, rng: Generator, side: float) -> _Person:
        return cls(
            side, rng.uniform(1.5, 1.9), _vary(rng, _CLOTHES), _vary(rng, _CLOTHES), rng.uniform(0.05, 0.25)
        )

    def paint(self, view: _View, ahead: float) -> None:
        if ahead < 2 * _NEAR:
            return
        hip, shoulder, x = 0.48 * self.height, 0.82 * self.height, self.side
        for foot in (-self.stride, self.stride):
            leg = [
                (x + foot - 0.07, 0, ahead),
                (x + foot + 0.07, 0, ahead),
                (x + 0.12, hip, ahead),
                (x - 0.12, hip, ahead),
            ]
            view.polygon(leg, self.trousers, PEDESTRIAN)
        torso = [(x - 0.17, hip - 0.1, ahead), (x + 0.17, hip - 0.1, ahead), (x + 0.24, shoulder, ahead)]
        view.polygon([*torso, (x - 0.24, shoulder, ahead)], self.coat, PEDESTRIAN)
        turn = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        head = [(x + 0.11 * np.cos(t), shoulder + 0.16 + 0.14 * np.sin(t), ahead) for t in turn]
        view.polygon(head, (178, 135, 110), PEDESTRIAN)
