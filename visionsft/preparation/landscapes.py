"""Landscapes: procedural satellite scenes whose land cover is known pixel by pixel.

A landscape is made as nature and people make one: relief, water where it is low, fields cut into parcels,
forest where it is moist or high, towns joined by roads. Its reflectance follows from the land cover, and the
"sensor" then blurs it, adds shade, haze and noise and cuts off what its swath did not reach. All lengths are
in pixels of 10 m, so that a small scene shows less ground and not smaller fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.floating]
"""(H, W), or (H, W, bands) where it is a reflectance."""
Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]

BANDS = ("blue", "green", "red", "nir", "swir")
PIXEL = 10.0
"""Metres."""
REFLECTANCE_SCALE = 10000
"""Pixel value of reflectance 1."""


class Cover(NamedTuple):
    """A class of land cover as the label rasters have it."""

    name: str
    value: int
    colour: str


COVERS = (
    Cover("water", 1, "#2b6cb0"),
    Cover("forest", 2, "#1f6b35"),
    Cover("cropland", 3, "#e3c567"),
    Cover("grassland", 4, "#9ccc65"),
    Cover("built-up", 5, "#d1495b"),
    Cover("road", 6, "#3d3d3d"),
    Cover("bare soil", 7, "#b08968"),
)
WATER, FOREST, CROPLAND, GRASSLAND, BUILT, ROAD, BARE = (cover.value for cover in COVERS)

# Reflectance in BANDS of what a pixel may be made of; invented, in the shapes that spectral libraries show.
_SPECTRA = {
    "clear water": (0.040, 0.036, 0.020, 0.010, 0.006),
    "muddy water": (0.065, 0.088, 0.082, 0.040, 0.015),
    "broadleaf": (0.022, 0.045, 0.026, 0.330, 0.150),
    "conifer": (0.020, 0.033, 0.023, 0.215, 0.095),
    "green crop": (0.030, 0.065, 0.035, 0.420, 0.190),
    "ripe crop": (0.065, 0.110, 0.140, 0.290, 0.280),
    "pale ground": (0.090, 0.115, 0.145, 0.215, 0.290),
    "dark ground": (0.052, 0.064, 0.080, 0.120, 0.170),
    "lush grass": (0.034, 0.072, 0.045, 0.330, 0.210),
    "dry grass": (0.058, 0.090, 0.098, 0.260, 0.270),
    "grey roof": (0.130, 0.140, 0.148, 0.180, 0.200),
    "tile roof": (0.085, 0.105, 0.165, 0.225, 0.245),
    "white roof": (0.260, 0.275, 0.285, 0.300, 0.290),
    "asphalt": (0.085, 0.093, 0.102, 0.125, 0.150),
    "gravel": (0.180, 0.215, 0.250, 0.305, 0.370),
}
_HAZE = np.array([1.0, 0.62, 0.40, 0.14, 0.03], np.float32)  # scattering falls with wavelength
_BLUR = (0.65, 0.65, 0.65, 0.65, 1.2)  # pixels; short-wave infrared has twice the ground pixel on Sentinel-2


@dataclass(frozen=True)
class Landscape:
    """One scene as the sensor delivers it, with its land cover."""

    image: NDArray[np.uint16]
    """(bands, H, W) reflectance x 10000; 0 is nodata."""
    labels: NDArray[np.uint8]
    """(H, W) values of `COVERS`; 0 where the image is nodata."""


def landscape(rng: Generator, *, size: int, swath_edge: bool, holes: bool) -> Landscape:
    """Make a scene of size x size pixels, cut by the edge of the swath and with holes, if wanted."""
    terrain = _terrain(rng, size)
    parcels = _parcels(rng, size)
    labels = _land_cover(rng, terrain, parcels)
    reflectance = _reflectance(rng, labels, parcels)
    measured = _sensor(rng, reflectance, labels, terrain.elevation)
    invalid = np.zeros((size, size), bool)
    if swath_edge:
        invalid |= _beyond_swath(rng, size)
    if holes:
        invalid |= _holes(rng, size)
    labels[invalid] = 0
    measured[invalid] = 0
    return Landscape(np.ascontiguousarray(measured.transpose(2, 0, 1)), labels)


# ---------------------------------------------------------------------------------- building blocks


def fractal(rng: Generator, size: int, *, wavelength: float, roughness: float = 3.0) -> Field:
    """Gaussian field of mean 0 and deviation 1 whose power falls as frequency**-roughness below `wavelength`.

    Spectral synthesis (Saupe 1988). Such a field is periodic, so it is made a margin wider than needed.
    """
    n = size + 128
    fy, fx = np.fft.fftfreq(n).astype(np.float32), np.fft.rfftfreq(n).astype(np.float32)
    amplitude = (fy[:, None] ** 2 + fx**2 + np.float32(wavelength**-2)) ** np.float32(-roughness / 4)
    spectrum = np.fft.rfft2(rng.standard_normal((n, n), dtype=np.float32)) * amplitude
    field = np.fft.irfft2(spectrum, s=(n, n))[:size, :size]
    return (field - field.mean()) / field.std()


def _distance(mask: Mask) -> Field:
    """Distance to the nearest True pixel, in pixels; far away where there is none."""
    if not mask.any():
        return np.full(mask.shape, 1e6, np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5).astype(np.float32)


def _opened(mask: Mask, width: int) -> Mask:
    """The mask without what is narrower than `width` pixels (morphological opening)."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)


def _mean_by_parcel(values: Field, parcels: Ids) -> Field:
    """(number of parcels,) mean of the values."""
    sums = np.bincount(parcels.ravel(), weights=values.ravel())
    return (sums / np.bincount(parcels.ravel())).astype(np.float32)


# ---------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class _Terrain:
    elevation: Field
    """Mean 0, deviation 1."""
    water: Mask
    bank: Field
    """Distance to the river, in pixels."""


def _terrain(rng: Generator, size: int) -> _Terrain:
    """Hills, a river that crosses the scene in the valley, and lakes in the hollows."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    across = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
    across += 26 * fractal(rng, size, wavelength=110, roughness=6) - rng.uniform(-0.3, 0.3) * size
    gy, gx = np.gradient(across)
    river = np.abs(across) / np.maximum(np.hypot(gx, gy), 0.3)
    elevation = fractal(rng, size, wavelength=180, roughness=4.5) + 0.9 * np.tanh(river / 90)
    hollows = elevation < np.quantile(elevation, rng.uniform(0.005, 0.06))
    lakes = _opened(hollows, 7)
    width = rng.uniform(1.0, 4.5) * (1 + 0.3 * fractal(rng, size, wavelength=60))
    return _Terrain((elevation - elevation.mean()) / elevation.std(), lakes | (river < width), river)


def _parcels(rng: Generator, size: int) -> Ids:
    """(H, W) parcel number from 0: districts (Voronoi), each cut into strips of its own direction."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    seeds = rng.uniform(0, size, (max(4, size * size // 90**2), 2)).astype(np.float32)
    bend = 5 * fractal(rng, size, wavelength=60)
    district = np.argmin([(y + bend - sy) ** 2 + (x - bend - sx) ** 2 for sy, sx in seeds], axis=0)
    parcels = np.zeros((size, size), np.int64)
    for number in range(len(seeds)):
        inside = district == number
        parcels[inside] = number * 10**6 + _strips(rng, y[inside], x[inside])
    return np.unique(parcels, return_inverse=True)[1].reshape(size, size)


def _strips(rng: Generator, y: Field, x: Field) -> Ids:
    """Parcel number of the points (y, x): rows of random depth, each cut at random places."""
    angle = rng.uniform(0, np.pi)
    along, aside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    depth = rng.uniform(9, 22)  # a district of small or of large fields
    rows = np.searchsorted(np.cumsum(rng.uniform(0.6, 1.4, 400) * depth), aside - aside.min(initial=0))
    shift = rng.uniform(0, 3 * depth, 401).astype(np.float32)[rows]
    columns = np.searchsorted(
        np.cumsum(rng.uniform(0.7, 3.5, 400) * depth), along - along.min(initial=0) + shift
    )
    return rows * 1000 + columns


def _land_cover(rng: Generator, terrain: _Terrain, parcels: Ids) -> NDArray[np.uint8]:
    """(H, W) uint8 values of `COVERS`."""
    size = len(parcels)
    moisture = fractal(rng, size, wavelength=90, roughness=2.8) - 0.5 * np.tanh(terrain.bank / 60)
    labels = np.full((size, size), CROPLAND, np.uint8)
    pasture = _mean_by_parcel(moisture, parcels) + rng.normal(0, 0.7, parcels.max() + 1)
    labels[(pasture > np.quantile(pasture, rng.uniform(0.6, 0.8)))[parcels]] = GRASSLAND
    labels[_forest(rng, terrain, parcels, moisture)] = FOREST
    labels[_bare_soil(rng, terrain)] = BARE
    labels[terrain.water] = WATER
    towns = _towns(rng, terrain)
    roads = _roads(rng, terrain.water, towns)
    built = _built_up(rng, parcels, towns, roads) & ~terrain.water
    labels[built] = BUILT
    labels[roads] = ROAD  # over water, too: bridges
    return labels


def _forest(rng: Generator, terrain: _Terrain, parcels: Ids, moisture: Field) -> Mask:
    """Woods with natural edges where it is moist or high, and woodlots that fill a parcel."""
    wildness = (
        0.8 * fractal(rng, len(parcels), wavelength=90, roughness=3.5)
        + 0.6 * terrain.elevation
        + 0.3 * moisture
    )
    woods = _opened(wildness > np.quantile(wildness, rng.uniform(0.60, 0.85)), 3)
    return woods | (rng.random(parcels.max() + 1) < 0.05)[parcels]


def _bare_soil(rng: Generator, terrain: _Terrain) -> Mask:
    """Gravel bars along the river, and pits."""
    size = len(terrain.bank)
    texture = fractal(rng, size, wavelength=30)
    bare = _opened((terrain.bank < 10) & (texture > 0.8), 3)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(max(1, round(rng.uniform(0.6, 1.6) * size * size / 180**2))):
        row, col = rng.uniform(0, size, 2)
        radius = rng.uniform(5, 13)
        bare |= np.hypot(y - row, (x - col) * rng.uniform(0.6, 1.6)) < radius * (1 + 0.25 * texture)
    return bare


class _Town(NamedTuple):
    row: float
    col: float
    radius: float


def _towns(rng: Generator, terrain: _Terrain) -> list[_Town]:
    """Places on dry, low land: few large ones, more small ones."""
    size = len(terrain.water)
    dry = _distance(terrain.water) > 8
    towns = []
    for _ in range(max(2, round(rng.uniform(0.7, 1.4) * size * size / 190**2))):
        candidates = rng.integers(0, size, (12, 2))
        heights = [terrain.elevation[r, c] + (0 if dry[r, c] else 9) for r, c in candidates]
        row, col = candidates[int(np.argmin(heights))]
        towns.append(_Town(row, col, float(np.clip(rng.lognormal(2.6, 0.45), 6, 30))))
    return towns


def _roads(rng: Generator, water: Mask, towns: list[_Town]) -> Mask:
    """A main road from edge to edge through the largest town; the others are linked to their nearest."""
    size = len(water)
    largest, *others = sorted(towns, key=lambda town: -town.radius)
    roads = np.zeros((size, size), bool)
    angle = rng.uniform(0, 2 * np.pi)
    for turn in (angle, angle + np.pi + rng.normal(0, 0.4)):
        edge = (largest.row + 1.5 * size * np.sin(turn), largest.col + 1.5 * size * np.cos(turn))
        roads |= _road(rng, water, (largest.row, largest.col), edge, width=3)
    connected = [largest]
    for town in others:
        goal = min(connected, key=lambda other: np.hypot(other.row - town.row, other.col - town.col))
        roads |= _road(rng, water, (town.row, town.col), (goal.row, goal.col), width=2)
        connected.append(town)
    return roads


def _road(rng: Generator, water: Mask, a: tuple[float, float], b: tuple[float, float], *, width: int) -> Mask:
    """A cubic Bezier curve between two (row, col) points: of eight, the one with the shortest bridges."""
    start, end = np.array(a), np.array(b)
    bend = 0.12 * np.hypot(*(end - start))
    t = np.linspace(0, 1, 60)[:, None]
    routes = []
    for _ in range(8):
        first, second = (start + (end - start) * share + rng.normal(0, bend, 2) for share in (1 / 3, 2 / 3))
        curve = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * end
        points = np.round(curve[:, ::-1] * 16).astype(np.int32)  # cv2 counts in 1/16 pixels here
        picture = np.zeros(water.shape, np.uint8)
        cv2.polylines(picture, [points], isClosed=False, color=1, thickness=width, shift=4)
        routes.append(picture.astype(bool))
    return min(routes, key=lambda route: (route & water).sum())


def _built_up(rng: Generator, parcels: Ids, towns: list[_Town], roads: Mask) -> Mask:
    """Built parcels around the towns' centres, ribbons along the roads, and farmsteads."""
    size = len(parcels)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    away = np.min([np.hypot(y - town.row, x - town.col) / town.radius for town in towns], axis=0)
    beside = _distance(roads)
    density = np.exp(-(away**2) / 2) + 0.35 * np.exp(-beside / 4) * np.exp(-away / 2.5)
    density += 0.12 * fractal(rng, size, wavelength=12, roughness=2)
    chosen = (_mean_by_parcel(density, parcels) > 0.5)[parcels] & (density > 0.3) | (density > 0.75)
    farms = (rng.random((size, size)) < 0.0004) & (beside < 30)
    return chosen | cv2.dilate(farms.astype(np.uint8), np.ones((3, 4), np.uint8)).astype(bool)


# ------------------------------------------------------------------------------------- reflectance


def _mix(first: str, second: str, share: Field) -> Field:
    """(..., bands): `share` (clipped to 0..1) of the second spectrum, the rest of the first."""
    a, b = np.array(_SPECTRA[first], np.float32), np.array(_SPECTRA[second], np.float32)
    return a + np.clip(share, 0, 1).astype(np.float32)[..., None] * (b - a)


def _reflectance(rng: Generator, labels: NDArray[np.uint8], parcels: Ids) -> Field:
    """(H, W, bands): every pixel has its cover's spectrum, varied by season, parcel and place."""
    size = len(labels)
    season = rng.uniform(0, 1)  # 0 spring: everything green; 1 late summer: ripe, ploughed and dry
    broad, fine = (
        fractal(rng, size, wavelength=70, roughness=4),
        fractal(rng, size, wavelength=6, roughness=1.5),
    )
    by_parcel = rng.normal(0, 1, parcels.max() + 1).astype(np.float32)[parcels]
    looks = {
        WATER: _mix("clear water", "muddy water", rng.uniform(0, 0.8) + 0.2 * broad),
        FOREST: _mix("conifer", "broadleaf", 0.5 + 1.2 * broad) * (1 + 0.13 * fine)[..., None],
        CROPLAND: _crops(rng, parcels, season, broad) * (1 + 0.04 * fine)[..., None],
        GRASSLAND: _mix("lush grass", "dry grass", 0.15 + 0.6 * season + 0.2 * broad + 0.15 * by_parcel)
        * (1 + 0.08 * fine)[..., None],
        BUILT: _buildings(rng, size),
        ROAD: _mix("asphalt", "grey roof", np.full((size, size), rng.uniform(0, 0.7), np.float32)),
        BARE: _mix("pale ground", "gravel", 0.75 + 0.3 * broad) * (1 + 0.14 * fine)[..., None],
    }
    reflectance = np.zeros((size, size, len(BANDS)), np.float32)
    for value, look in looks.items():
        inside = labels == value
        reflectance[inside] = look[inside]
    gains = 1 + 0.05 * rng.normal(0, 1, (parcels.max() + 1, len(BANDS))).astype(np.float32)
    return reflectance * gains[parcels]


def _crops(rng: Generator, parcels: Ids, season: float, broad: Field) -> Field:
    """(H, W, bands): each parcel at its own point of the year, from bare ground to green or ripe."""
    count = parcels.max() + 1
    green = rng.beta(1.1 + 1.2 * (1 - season), 1.1 + 1.2 * season, count).astype(np.float32)
    ripe = (rng.random(count) < 0.2 + 0.5 * season)[parcels].astype(np.float32)
    ground = _mix("dark ground", "pale ground", 0.5 + 0.2 * broad + 0.25 * rng.normal(0, 1, count)[parcels])
    cover = np.clip(green[parcels] + 0.05 * broad, 0, 1)[..., None]
    plants = _mix("green crop", "ripe crop", ripe)
    return cover * plants + (1 - cover) * ground


def _buildings(rng: Generator, size: int) -> Field:
    """(H, W, bands): roofs of three kinds and gardens, patch by patch of two pixels."""
    names = ("grey roof", "tile roof", "white roof", "asphalt", "lush grass", "broadleaf")
    spectra = np.array([_SPECTRA[name] for name in names], np.float32)
    half = -(-size // 2)
    patches = spectra[rng.choice(len(names), (half, half), p=(0.28, 0.25, 0.07, 0.16, 0.14, 0.10))]
    return patches.repeat(2, axis=0).repeat(2, axis=1)[:size, :size] * rng.normal(
        1, 0.15, (size, size, 1)
    ).astype(np.float32)


# ------------------------------------------------------------------------------------------ sensor


def _sensor(
    rng: Generator, reflectance: Field, labels: NDArray[np.uint8], elevation: Field
) -> NDArray[np.uint16]:
    """(H, W, bands) uint16: what arrives through relief, optics, air and electronics; at least 1."""
    gy, gx = np.gradient(elevation)
    sun = rng.uniform(0, 2 * np.pi)
    shade = np.clip(1 + rng.uniform(1.0, 4.0) * (gx * np.cos(sun) + gy * np.sin(sun)), 0.7, 1.3)
    lit = reflectance * np.where(labels == WATER, 1, shade).astype(np.float32)[..., None]
    blurred = np.stack([cv2.GaussianBlur(lit[..., b], (0, 0), s) for b, s in enumerate(_BLUR)], axis=-1)
    air = rng.uniform(0.004, 0.035) * (1 + 0.3 * fractal(rng, len(labels), wavelength=300, roughness=4))
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.96, 1.04, len(BANDS)).astype(np.float32)
    measured = blurred * gain + np.maximum(air, 0)[..., None] * _HAZE
    noise = rng.standard_normal(measured.shape, dtype=np.float32) * (0.001 + 0.012 * measured)
    return np.clip(np.round((measured + noise) * REFLECTANCE_SCALE), 1, 65535).astype(np.uint16)


def _beyond_swath(rng: Generator, size: int) -> Mask:
    """A corner or side beyond the slanted edge of the swath (orbits are inclined by some 10 degrees)."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    tilt = np.tan(np.deg2rad(rng.uniform(9, 14)))
    east = x if rng.random() < 0.5 else size - 1 - x
    return east + tilt * (y - size / 2) > size * rng.uniform(0.82, 0.95)


def _holes(rng: Generator, size: int) -> Mask:
    """Where a provider has cut out clouds: some 2 % of the scene in a few pieces."""
    field = fractal(rng, size, wavelength=40, roughness=5)
    return field > np.quantile(field, 0.98)
