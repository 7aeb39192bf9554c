"""Sample data: what is in the folder, that it is the same again, and what it refuses."""

from __future__ import annotations

import hashlib
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio

from visionsft.errors import ConfigError, WriteError
from visionsft.preparation import landscapes, sampledata, streets


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def satellite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sampledata.generate(tmp_path_factory.mktemp("satellite") / "data", seed=3, scenes=6, size=160)


@pytest.fixture(scope="module")
def driving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("driving") / "data"
    return sampledata.generate(target, kind="driving", scenes=10, size=90)


def test_every_scene_has_a_label_raster_on_the_same_grid(satellite: Path) -> None:
    images = sorted(satellite.glob("*/images/*.tif"))
    assert [path.parts[-3] for path in images] == ["test"] + ["train"] * 4 + ["val"]
    assert len({path.name for path in images}) == len(images)
    for path in images:
        with rasterio.open(path) as image, rasterio.open(path.parents[1] / "labels" / path.name) as labels:
            assert (image.crs, image.transform, image.shape) == (labels.crs, labels.transform, labels.shape)
            assert image.descriptions == landscapes.BANDS
            assert image.dtypes == ("uint16",) * 5
            assert labels.dtypes == ("uint8",)
            assert image.nodata == labels.nodata == 0
            assert image.profile["tiled"]
            assert image.profile["compress"] == "deflate"
            # nodata agrees in all bands and in the labels
            valid = image.read() > 0
            assert (valid == (labels.read(1) > 0)).all()


def test_scenes_are_places_of_their_own(satellite: Path) -> None:
    places: dict[str, list[tuple[float, float]]] = {}
    pixels = set()
    for path in satellite.glob("*/images/*.tif"):
        with rasterio.open(path) as image:
            places.setdefault(str(image.crs), []).append((image.bounds.left, image.bounds.right))
            pixels.add(image.read().tobytes())
    assert set(places) == {"EPSG:32632", "EPSG:32633"}
    assert len(pixels) == 6
    for spans in places.values():
        ordered = sorted(spans)
        assert all(left[1] < right[0] for left, right in pairwise(ordered))


def test_land_cover_is_unbalanced_as_in_nature() -> None:
    shares = np.zeros(8)
    for number in range(4):
        scene = landscapes.landscape(
            np.random.default_rng([0, number]), size=256, swath_edge=True, holes=True
        )
        shares += np.bincount(scene.labels.ravel(), minlength=8) / 4 / scene.labels.size
    share = dict(zip((cover.name for cover in landscapes.COVERS), shares[1:], strict=True))
    assert 0.03 < shares[0] < 0.3
    assert share["cropland"] + share["forest"] > 0.5
    assert all(0 < share[rare] < 0.06 for rare in ("built-up", "road", "bare soil"))


def test_reflectance_is_that_of_the_land_cover() -> None:
    """Vegetation is bright in nir and dark in red, water dark in both: NDVI and NDWI hold on class means."""
    scene = landscapes.landscape(np.random.default_rng(1), size=256, swath_edge=False, holes=False)
    mean = {c.name: scene.image[:, scene.labels == c.value].mean(1) / 10000 for c in landscapes.COVERS}
    ndvi = {name: (m[3] - m[2]) / (m[3] + m[2]) for name, m in mean.items()}
    assert ndvi["forest"] > 0.6 > ndvi["bare soil"] > ndvi["water"]
    assert mean["water"][1] > mean["water"][3]  # green above nir
    assert all(m.min() > 0 and m.max() < 0.6 for m in mean.values())


def test_pixel_value_alone_does_not_tell_the_class() -> None:
    """The nearest class mean, fitted on the very scene, stays far from perfect: context is needed."""
    scene = landscapes.landscape(np.random.default_rng(2), size=256, swath_edge=False, holes=False)
    pixels, labels = scene.image.reshape(5, -1).T / 10000, scene.labels.ravel()
    means = np.array([pixels[labels == value].mean(0) for value in range(1, 8)])
    nearest = 1 + np.argmin(((pixels[:, None] - means) ** 2).sum(-1), axis=1)
    recalls = [(nearest[labels == value] == value).mean() for value in range(1, 8)]
    assert 0.3 < np.mean(recalls) < 0.9


def test_every_frame_has_a_mask_and_every_drive_one_split(driving: Path) -> None:
    images = sorted(driving.glob("images/*/*.jpg"))
    assert len(images) == 10
    assert len(list(driving.glob("labels/*/*.png"))) == 10
    allowed = {thing.value for thing in streets.THINGS} | {255}
    drives: dict[str, set[str]] = {}
    seen: set[int] = set()
    for path in images:
        mask_path = driving / "labels" / path.parent.name / f"{path.stem}.png"
        image, mask = cv2.imread(str(path)), cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert mask is not None
        assert image.shape == (90, 160, 3)
        assert (mask.shape, mask.dtype) == ((90, 160), np.uint8)
        assert set(np.unique(mask)) <= allowed
        assert mask[-1, 80] == 255  # the bonnet
        seen |= set(np.unique(mask).tolist())
        drives.setdefault(path.name.split("_")[0], set()).add(path.parent.name)
    assert len(drives) == 5
    assert all(len(splits) == 1 for splits in drives.values())
    assert seen == allowed


def test_frames_of_a_drive_show_the_same_street_further_on() -> None:
    street = streets.Drive((0, 0))
    first, again, later = (street.frame(number, height=90, width=160) for number in (0, 0, 1))
    other = streets.Drive((0, 1)).frame(0, height=90, width=160)
    assert (first.image == again.image).all()
    assert (first.labels != later.labels).any()
    assert (first.labels == later.labels).mean() > (first.labels == other.labels).mean()


@pytest.mark.parametrize(("kind", "scenes", "size"), [("satellite", 3, 64), ("driving", 5, 45)])
def test_the_seed_decides(tmp_path: Path, kind: str, scenes: int, size: int) -> None:
    def made(name: str, seed: int) -> dict[str, str]:
        return hashes(sampledata.generate(tmp_path / name, kind=kind, seed=seed, scenes=scenes, size=size))

    first = made("a", 0)
    assert made("b", 0) == first
    assert not set(made("c", 1).values()) & set(first.values())


def test_readme_states_licence_and_classes(satellite: Path, driving: Path) -> None:
    for folder, classes in ((satellite, landscapes.COVERS), (driving, streets.THINGS)):
        text = (folder / "README.txt").read_text()
        assert "CC0" in text
        assert re.findall(r"^ *(\d+)  (.+)  (#\w{6})$", text, re.M) == [
            (str(c.value), c.name, c.colour) for c in classes
        ]


def test_own_folder_is_replaced_and_a_foreign_one_refused(tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.mkdir()
    sampledata.generate(target, scenes=3, size=64)
    (target / "train" / "stale.txt").write_text("from before")
    sampledata.generate(target, kind="driving", scenes=5, size=36)
    assert sorted(path.name for path in target.iterdir()) == ["README.txt", "images", "labels"]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_text("mine")
    (foreign / "README.txt").write_text("my holiday")
    with pytest.raises(ConfigError, match=r"photos has other files in it"):
        sampledata.generate(foreign)
    with pytest.raises(ConfigError, match=r"holiday.jpg is a file"):
        sampledata.generate(foreign / "holiday.jpg")
    assert (foreign / "holiday.jpg").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "photos"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "satelite"}, "nearest: satellite"),
        ({"scenes": 2}, "scenes >= 3 .* got scenes=2, size=512"),
        ({"kind": "driving", "size": 10}, "size >= 36"),
        ({"size": 0}, "size >= 32"),
    ],
)
def test_mistakes_are_answered(tmp_path: Path, arguments: dict[str, str | int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampledata.generate(tmp_path / "data", **arguments)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing more than `size` bytes into a file fails, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kind", ["satellite", "driving"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    with files_limited_to(1000), pytest.raises(WriteError, match="data: the sample data can't be written"):
        sampledata.generate(tmp_path / "data", kind=kind, scenes=5, size=64)
    assert not any(tmp_path.iterdir())
