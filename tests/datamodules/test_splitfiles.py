"""Split files and leaks, end to end through data modules: what is written is read back as the same split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.warp import transform
from scipy.spatial import cKDTree

from datamodules.camera import CameraFrameDataModule
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.geotiff import GeoTiffDataModule
from datamodules.leaks import describe, find_leaks
from datamodules.raster import Grid
from datamodules.splitfiles import format_blocks, format_split
from datamodules.splits import DriveSplit, FileSplit, FolderSplit, PlaceSplit, SceneSplit, Split

CLASSES = (ClassSpec("ground", (1,)), ClassSpec("water", (2,)), ClassSpec("rare", (3,)))
CHIP = 16


def scenes(root: Path, split: Split) -> GeoTiffDataModule:
    module = GeoTiffDataModule(
        root, images="images/*.tif", labels="labels/{name}.tif", classes=CLASSES, chip=CHIP,
        split=split, cache_dir=root.parent / "cache",
    )  # fmt: skip
    module.scan()
    return module


def frames(root: Path, split: Split, *, drives: str | None = None) -> CameraFrameDataModule:
    folder = "{split}/" if isinstance(split, FolderSplit) else "all/"
    module = CameraFrameDataModule(
        root, layout="pairs", images=f"images/{folder}*.png", labels=f"masks/{folder}{{name}}.png",
        classes=CLASSES, size=(16, 16), split=split, drive_pattern=drives, cache_dir=root.parent / "cache",
    )  # fmt: skip
    module.scan()
    return module


@pytest.fixture
def overlapping(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Two scenes of the same 1.6 km in two UTM zones, and one apart; labels of the first two contradict."""
    rng = np.random.default_rng(0)
    xs, ys = transform("EPSG:32633", "EPSG:32632", [500_400.0], [5_400_000.0])
    places = {
        "a": ("EPSG:32633", 500_000.0, 5_400_000.0),
        "b": ("EPSG:32632", xs[0], ys[0]),
        "c": ("EPSG:32633", 520_000.0, 5_400_000.0),
        "d": ("EPSG:32633", 530_000.0, 5_400_000.0),
    }
    for name, (crs, west, north) in places.items():
        label = np.full((160, 160), 2 if name == "b" else 1, np.uint8)
        label[:8, :8] = 3
        place = {"crs": crs, "west": west, "north": north}
        write_raster(
            tmp_path / f"data/images/{name}.tif", rng.integers(1, 255, (3, 160, 160), np.uint8), **place
        )
        write_raster(tmp_path / f"data/labels/{name}.tif", label, **place)
    return tmp_path / "data"


def drive_frames(root: Path, folders: dict[str, list[str]]) -> Path:
    rng = np.random.default_rng(1)
    for folder, names in folders.items():
        for name in names:
            for kind, array in (
                ("images", rng.integers(0, 255, (16, 16, 3), np.uint8)),
                ("masks", rng.integers(1, 3, (16, 16), np.uint8)),
            ):
                path = root / kind / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


@pytest.mark.parametrize("split", [SceneSplit(0.25, 0.25), PlaceSplit(400.0, val=0.25, test=0.25)])
def test_split_of_scenes_is_read_back_as_it_was(overlapping: Path, tmp_path: Path, split: Split) -> None:
    drawn = scenes(overlapping, split)
    path = tmp_path / "split.csv"
    path.write_text(format_split(drawn.items, found=drawn.found))
    assert scenes(overlapping, FileSplit(path)).items == drawn.items
    assert all(drawn.items[name] for name in ("train", "val", "test"))


@pytest.mark.parametrize("stratify", [False, True])
def test_place_split_across_crs_shares_no_ground_and_keeps_a_chip_apart(
    overlapping: Path, stratify: bool
) -> None:
    module = scenes(overlapping, PlaceSplit(400.0, val=0.25, test=0.25, stratify=stratify))
    assert {Path(item.image).stem for item in module.items["train"]} >= {"a", "b"}
    assert not [leak for leak in find_leaks(module) if leak.kind in ("ground", "near")]
    assert '"Polygon"' in format_blocks(module.items, side=400.0)


def test_scenes_of_the_same_ground_stay_together_and_contradict(overlapping: Path) -> None:
    module = scenes(overlapping, SceneSplit(0.25, 0.25))
    group = {
        Path(item.image).stem: (name, item.group) for name, items in module.items.items() for item in items
    }
    assert group["a"] == group["b"]
    assert len(set(group.values())) == 3
    kinds = [leak.kind for leak in find_leaks(module, pictures=True, labels=True)]
    assert "contradiction" in kinds
    assert "ground" not in kinds


def test_given_split_with_shared_ground_is_found(overlapping: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("image,split\na,train\nb,val\nc,train\nd,none\n")
    module = scenes(overlapping, FileSplit(path))
    leaks = {leak.kind: leak for leak in find_leaks(module)}
    assert (leaks["ground"].count, leaks["ground"].total, leaks["ground"].splits) == (1, 1, ("train", "val"))


def test_drives_in_two_folders_and_copied_frames_are_found(tmp_path: Path) -> None:
    root = drive_frames(
        tmp_path / "data", {"train": ["x_1", "x_90", "y_1"], "val": ["x_5", "z_1"], "test": ["w_1"]}
    )
    (root / "images/test/w_1.png").write_bytes((root / "images/train/y_1.png").read_bytes())
    leaks = {
        (leak.kind, leak.splits): leak
        for leak in find_leaks(frames(root, FolderSplit(), drives="^(.)_"), pictures=True, labels=True)
    }
    assert leaks["drive", ("train", "val")].count == 1
    assert leaks["drive", ("train", "val")].total == 2
    assert "4 frame numbers apart" in leaks["neighbour", ("train", "val")].examples[0].note
    assert leaks["identical", ("train", "test")].count == 1
    assert describe(list(leaks.values()))[0].startswith(
        "train leaks into val: 1 of 2 val frames is of drives"
    )


def test_drives_by_table_stay_whole(tmp_path: Path) -> None:
    root = drive_frames(tmp_path / "data", {"all": [f"f{i}" for i in range(12)]})
    table = tmp_path / "drives.csv"
    table.write_text("frame,drive\n" + "".join(f"f{i},d{i % 4}\n" for i in range(12)))
    split = DriveSplit(table=table, val=0.25, test=0.25, stratify=True)
    module = frames(root, split)
    owners = {(item.group, name) for name, items in module.items.items() for item in items}
    assert len(owners) == len({group for group, _ in owners}) == 4
    path = tmp_path / "split.csv"
    path.write_text(format_split(module.items, found=module.found))
    assert frames(root, FileSplit(path)).items == module.items
    table.write_text("frame,dirve\n" + "".join(f"f{i},d\n" for i in range(12)))
    with pytest.raises(DataError, match="did you mean 'dirve'"):
        frames(root, split)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty|first line"),
        ("image,spilt\na,train\n", "did you mean 'spilt'"),
        ("image,split\na,training\n", "line 2: split is 'training'"),
        ("image,split\na,train\na,val\n", "line 3: .* given again"),
        ("image,split\na,train\n", "3 of 4 samples are not in it"),
        ("image,split,row,col,height,width\na,train,0,0,999,5\n", "not inside of"),
        ("image,split\na,val\nb,val\nc,val\nd,val\n", "none of its 4 lines has the split 'train'"),
    ],
)
def test_bad_split_files(overlapping: Path, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        scenes(overlapping, FileSplit(path))


def test_table_lists_what_is_left_out(overlapping: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("image,split\na,train\nb,val\nc,none\nd,none\n")
    module = scenes(overlapping, FileSplit(path))
    rows = list(csv.DictReader(format_split(module.items, found=module.found).splitlines()))
    assert sorted(row["split"] for row in rows) == ["none", "none", "train", "val"]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    east=st.integers(-1500, 1500),
    north=st.integers(-1500, 1500),
    block=st.sampled_from([350.0, 500.0]),
    seed=st.integers(0, 99),
)
def test_place_splits_share_no_pixel_and_keep_their_gap(
    write_raster: Callable[..., Path], east: int, north: int, block: float, seed: int
) -> None:
    """Pixels' corners of different splits, as points in space, are a chip apart whatever the scenes' overlap."""
    with TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        xs, ys = transform("EPSG:32633", "EPSG:32632", [500_000.0 + east], [5_400_000.0 + north])
        for name, crs, x, y in (("a", 32633, 500_000.0, 5_400_000.0), ("b", 32632, xs[0], ys[0])):
            place = {"crs": f"EPSG:{crs}", "west": x, "north": y}
            write_raster(root / f"images/{name}.tif", np.ones((3, 120, 120), np.uint8), **place)
            write_raster(root / f"labels/{name}.tif", np.ones((120, 120), np.uint8), **place)
        module = scenes(root, PlaceSplit(block, val=0.25, test=0.25, seed=seed))
        reader = module.reader()
        points = {
            split: np.concatenate([_edge_points(reader.grid(item)) for item in items])
            for split, items in module.items.items()
            if items
        }
    for one, other in combinations(points, 2):
        distances, _ = cKDTree(points[one]).query(points[other])
        assert distances.min() >= CHIP * 10 * 0.99


def _edge_points(grid: Grid) -> np.ndarray:
    """(n, 2) metres in zone 33, a pixel apart, of a window's border."""
    rows, cols = np.meshgrid(np.arange(grid.height + 1), np.arange(grid.width + 1), indexing="ij")
    border = (rows % grid.height == 0) | (cols % grid.width == 0)
    lons, lats = grid.to_lonlat(rows[border].astype(float), cols[border].astype(float))
    return np.stack(transform("EPSG:4326", "EPSG:32633", lons, lats), axis=1)


def test_place_split_at_the_date_line(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    for name, crs in (("a", "EPSG:32660"), ("b", "EPSG:32601")):
        xs, ys = transform("EPSG:4326", crs, [179.99], [0.02])
        place = {"crs": crs, "west": xs[0], "north": ys[0]}
        write_raster(tmp_path / f"data/images/{name}.tif", np.ones((3, 200, 200), np.uint8), **place)
        write_raster(tmp_path / f"data/labels/{name}.tif", np.ones((200, 200), np.uint8), **place)
    module = scenes(tmp_path / "data", PlaceSplit(500.0, val=0.25, test=0.25))
    groups = {split: {item.group for item in items} for split, items in module.items.items()}
    assert all(groups.values())
    assert not find_leaks(module)
    by_scene = [
        {item.group for items in module.items.values() for item in items if name in item.id}
        for name in ("a.tif", "b.tif")
    ]
    assert by_scene[0] & by_scene[1]  # the same ground has the same name on both sides


@pytest.mark.slow
def test_camvid_leaks(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/camvid"
    if not root.exists():
        pytest.skip("no CamVid")
    module = CameraFrameDataModule(root, layout="camvid", crop=(64, 64), cache_dir=tmp_path)
    found = {(leak.kind, leak.splits): (leak.count, leak.total) for leak in find_leaks(module)}
    assert found["drive", ("train", "val")] == (101, 101)
    assert found["drive", ("train", "test")] == (62, 233)
