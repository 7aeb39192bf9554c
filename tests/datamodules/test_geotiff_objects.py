"""GeoTIFF scenes with objects: vector files and pixel labels, windows around objects and without, tiles, errors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from datamodules.augment import Augment
from datamodules.batch import Window
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.geotiff_objects import GeoTiffDetectionDataModule
from datamodules.labels import VectorOptions
from datamodules.sampling import SampleKey
from datamodules.splits import FolderSplit, ListSplit, PlaceSplit, SceneSplit
from datamodules.views import turned_corners

CLASSES = (ClassSpec("boat", ("boat",)), ClassSpec("buoy", ("buoy",)))
WEST, NORTH, PIXEL = 500_000.0, 5_400_000.0, 10.0
SIDE = 200
BOXES = [(10, 20, 30, 32), (150, 160, 170, 190), (90, 95, 110, 105)]
"""In pixels of each scene; the second one is a buoy, the third lies across tiles."""


def place(index: int) -> Affine:
    """Pixels to the ground of scene `index`."""
    return Affine.translation(WEST + 10_000 * index, NORTH) * Affine.scale(PIXEL, -PIXEL)


def on_ground(shape: shapely.Geometry, index: int) -> shapely.Geometry:
    where = place(index)
    return shapely.transform(shape, lambda points: np.array([where * tuple(point) for point in points]))


def write_vectors(path: Path, shapes: list[shapely.Geometry], classes: list[str], crs: str = "EPSG:32633") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = {".geojson": "GeoJSON", ".gpkg": "GPKG"}[path.suffix]
    wkb = shapely.to_wkb(np.array(shapes, object))
    column = [np.array(classes, object)]
    pyogrio.raw.write(path, wkb, column, ["class"], driver=driver, crs=crs, geometry_type="Polygon")
    return path


def image(boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """(2, H, W) uint16: 100, and 3000 inside of objects; the second band is even."""
    values = np.full((2, SIDE, SIDE), 100, np.uint16)
    for x1, y1, x2, y2 in boxes:
        values[0, y1:y2, x1:x2] = 3000
    values[1] = np.arange(SIDE)
    return values


@pytest.fixture
def root(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Four scenes with three objects each, but the last, which is empty."""
    for index in range(4):
        boxes = BOXES if index < 3 else []
        write_raster(tmp_path / f"data/images/s{index}.tif", image(boxes), west=WEST + 10_000 * index)
        shapes = [on_ground(shapely.box(*box), index) for box in boxes]
        write_vectors(tmp_path / f"data/labels/s{index}.gpkg", shapes, ["boat", "buoy", "boat"][: len(boxes)])
    return tmp_path / "data"


@pytest.fixture
def lists(tmp_path: Path) -> ListSplit:
    (tmp_path / "train.txt").write_text("s0\ns1")
    (tmp_path / "val.txt").write_text("s2\ns3")
    return ListSplit(tmp_path / "train.txt", tmp_path / "val.txt")


def module(root: Path, split: Any, **options: Any) -> GeoTiffDetectionDataModule:
    settings: dict[str, Any] = {
        "labels": "labels/{name}.gpkg",
        "classes": CLASSES,
        "split": split,
        "normalise": "data",
        "augment": Augment("none"),
        "chip": 64,
        "batch_size": 2,
        "workers": 0,
    }
    return GeoTiffDetectionDataModule(root, **settings | options)


def boxes_of(made: GeoTiffDetectionDataModule, split: str = "train") -> list[list[float]]:
    return made.objects(split)[0][1].boxes.round(3).tolist()


def test_shapes_become_boxes_in_pixels(root, lists):
    made = module(root, lists)
    made.setup()
    assert boxes_of(made) == [list(box) for box in BOXES]
    assert made.objects("train")[0][1].labels.tolist() == [0, 1, 0]
    card = made.data_card()
    assert card["class_objects"] == {"boat": 4, "buoy": 2}
    assert card["images_without_objects"] == {"train": 0, "val": 1, "test": 0}
    assert json.loads(json.dumps(card)) == card
    assert sorted(made.training_boxes().round(3).tolist())[0] == [20, 10]


def test_shapes_in_another_crs_lie_on_their_pixels(root, lists):
    for index in range(3):
        shapes = [on_ground(shapely.box(*box), index) for box in BOXES]
        lonlat = shapely.transform(
            np.array(shapes, object),
            lambda points: np.stack(transform("EPSG:32633", "EPSG:4326", points[:, 0], points[:, 1]), axis=1),
        )
        write_vectors(root / f"labels/s{index}.geojson", list(lonlat), ["boat", "buoy", "boat"], "EPSG:4326")
    write_vectors(root / "labels/s3.geojson", [], [], "EPSG:4326")
    made = module(root, lists, labels="labels/{name}.geojson")
    made.scan()
    assert np.abs(np.array(boxes_of(made)) - BOXES).max() < 0.05


def test_swapped_axes_are_said(root, lists):
    for index in range(4):
        x, y = place(index) * (100, 100)
        (lon,), (lat,) = transform("EPSG:32633", "EPSG:4326", [x], [y])
        swapped = shapely.Point(lat, lon).buffer(1e-4)
        write_vectors(root / f"labels/s{index}.geojson", [swapped], ["boat"], "EPSG:4326")
    with pytest.raises(DataError, match=r"s0.geojson: none of its 1 shapes.*With x and y swapped they would meet"):
        module(root, lists, labels="labels/{name}.geojson").scan()


def test_one_file_for_all_scenes_leaves_some_empty(root, lists):
    shapes = [on_ground(shapely.box(*box), index) for index in (0, 2) for box in BOXES]
    write_vectors(root / "all.gpkg", shapes, ["boat"] * 6)
    made = module(root, lists, labels="all.gpkg")
    made.scan()
    assert [len(objects) for _, objects in made.objects("train")] == [3, 0]
    assert any("2 of 4 scenes hold no shape of all.gpkg" in note for note in made.notes)
    write_vectors(root / "far.gpkg", [shapely.transform(shape, lambda at: at + 1e6) for shape in shapes], ["boat"] * 6)
    with pytest.raises(DataError, match="none of its 6 shapes lies within the scene"):
        module(root, lists, labels="far.gpkg").scan()


def test_points_become_boxes_by_their_buffer_and_lists_of_one_are_a_class(root, lists):
    for index in range(4):
        x, y = place(index) * (100.5, 50.5)
        point = {"type": "Point", "coordinates": [x, y]}
        feature = {"type": "Feature", "properties": {"labels": ["boat"]}, "geometry": point}
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
        content = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
        (root / f"labels/s{index}.geojson").write_text(json.dumps(content))
    options = VectorOptions(column="labels", buffer=50)
    made = module(root, lists, labels="labels/{name}.geojson", vector=options)
    made.scan()
    assert boxes_of(made) == [pytest.approx([95.5, 45.5, 105.5, 55.5])]


def test_polygons_become_turned_boxes(root, lists):
    lying = shapely.affinity.rotate(shapely.box(80, 95, 120, 105), 30)
    for index in range(4):
        write_vectors(root / f"labels/s{index}.gpkg", [on_ground(lying, index)], ["boat"])
    made = module(root, lists, turned=True, augment=Augment("nadir"))
    made.scan()
    objects = made.objects("train")[0][1]
    assert objects.turned[0].tolist() == pytest.approx([100, 100, 40, 10, np.radians(30)], rel=1e-4)
    dataset = made.training_dataset()
    for index in range(len(dataset)):
        target = dataset[SampleKey(0, 0, index)]["target"]
        for row, box in zip(target["turned"].numpy(), target["boxes"].numpy(), strict=True):
            assert sorted(row[2:4].tolist()) == pytest.approx([10, 40], rel=1e-3)
            corners = turned_corners(row[None])[0].clip(0, 64)
            assert np.abs(np.concatenate([corners.min(axis=0), corners.max(axis=0)]) - box).max() < 0.01


@pytest.mark.parametrize("pipeline", ["nadir", "none"])
def test_augmented_boxes_and_masks_lie_on_their_pixels(root, lists, pipeline):
    made = module(root, lists, augment=Augment(pipeline, scale=(0.7, 1.5)), masks=True, empty_share=0.0)
    made.scan()
    dataset = made.training_dataset()
    bright = (1500 - made.normalisation.mean[0]) / made.normalisation.std[0]
    seen = 0
    for epoch in range(4):
        for index in range(len(dataset)):
            sample = dataset[SampleKey(0, epoch, index)]
            shown = (sample["image"][0] > bright).numpy()
            assert sample["image"].shape == (2, 64, 64)
            drawn = np.zeros((64, 64), bool)
            target = sample["target"]
            for (x1, y1, x2, y2), mask in zip(target["boxes"].tolist(), target["masks"].numpy(), strict=True):
                inside = shown[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2]
                assert inside.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.35)
                drawn |= mask
                seen += 1
            if len(target["ignored"]) == 0:
                edge = np.count_nonzero(drawn != shown)
                assert edge <= 0.3 * max(shown.sum(), 1)
    assert seen > 60


def test_empty_share_of_windows(root, lists):
    for share in (0.0, 0.5, 1.0):
        made = module(root, lists, empty_share=share, chips_per_epoch=200)
        made.scan()
        dataset = made.training_dataset()
        empty = [len(dataset[SampleKey(1, 0, index)]["target"]["boxes"]) == 0 for index in range(200)]
        assert np.mean(empty) == pytest.approx(share, abs=0.12)


def tiles_of(made: GeoTiffDetectionDataModule, split: str) -> list[Any]:
    made.batch_size = made.eval_batch_size = 1
    return list(made.evaluation_loader(split))


def test_every_object_is_scored_in_one_tile(root, lists):
    made = module(root, lists, eval_chip=90, eval_overlap=0.3)
    made.setup()
    counts = {item.id: count for item, count in made.evaluation_regions("val")}
    batches = tiles_of(made, "val")
    assert len(batches) == sum(counts.values()) == 18
    found = []
    for batch in batches:
        window, target = batch["item"][0].window, batch["target"][0]
        assert tuple(batch["image"].shape[2:]) == (window.height, window.width)
        shift = np.array([window.col, window.row] * 2)
        found += [tuple(box) for box in (target["boxes"].numpy() + shift).round(3).tolist()]
        # what this tile sees but another scores is no background
        seen = [box for box in BOXES if batch["item"][0].image.endswith("s2.tif") and _meets(box, window)]
        assert len(target["boxes"]) + len(target["ignored"]) == len(seen)
    assert sorted(found) == sorted(tuple(map(float, box)) for box in BOXES)


def _meets(box: tuple[int, ...], window: Window) -> bool:
    frame = shapely.box(window.col, window.row, window.col + window.width, window.row + window.height)
    return shapely.box(*box).intersection(frame).area > 0


def test_small_scenes_are_evaluated_whole(root, lists):
    made = module(root, lists, chip=100)
    made.setup()
    batches = tiles_of(made, "val")
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 2, SIDE, SIDE)] * 2
    assert [len(batch["target"][0]["boxes"]) for batch in batches] == [3, 0]


def test_blocks_of_ground_share_no_object(tmp_path, write_raster):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 180, (60, 2))
    shapes = [shapely.box(x, y, x + 15, y + 12) for x, y in corners.tolist()]
    write_raster(tmp_path / "data/images/s.tif", image([]))
    write_vectors(tmp_path / "data/all.gpkg", [on_ground(shape, 0) for shape in shapes], ["boat"] * 60)
    made = module(tmp_path / "data", PlaceSplit(block=500, gap=0, val=0.3, test=0.2), labels="all.gpkg", chip=32,
                  classes=CLASSES[:1])  # fmt: skip
    made.scan()
    middles = []
    for split, items in made.items.items():
        for item, objects in made.objects(split):
            window = item.window or Window(0, 0, SIDE, SIDE)
            assert item in items
            found = objects.boxes[~objects.ignored]
            middles += [tuple(np.round(box + np.array([window.col, window.row] * 2), 2)) for box in found]
    assert len(set(middles)) == len(middles) > 30


def test_pixel_labels_beside_the_scenes(root, lists):
    (root / "annotations").mkdir()
    for index in range(4):
        rows = "".join(
            f"<object><name>boat</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for x1, y1, x2, y2 in BOXES
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        (root / f"annotations/s{index}.xml").write_text(f"<annotation>{size}{rows}</annotation>")
    options = {"layout": "voc", "labels": "annotations/{name}.xml", "images": "images/*.tif", "classes": CLASSES[:1]}
    made = module(root, lists, **options)
    made.scan()
    assert boxes_of(made) == [list(box) for box in BOXES]
    coarse = module(root, lists, **options, resolution=20.0, chip=32)
    coarse.scan()
    assert boxes_of(coarse) == [[each / 2 for each in box] for box in BOXES]
    (root / "annotations/s1.xml").write_text("<annotation><size><width>9</width><height>8</height></size></annotation>")
    with pytest.raises(DataError, match=r"s1.xml: 9 x 8 pixels, but.* 200 x 200"):
        module(root, lists, **options).scan()


def test_coco_names_scenes(root, lists):
    images = [{"id": i, "file_name": f"s{i}.tif", "height": SIDE, "width": SIDE} for i in range(4)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 20, 20, 12], "area": 240, "iscrowd": 0}
        for i in range(3)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "boat"}]}
    (root / "objects.json").write_text(json.dumps(content))
    made = module(root, lists, layout="coco", labels=None, annotations="objects.json", images="images",
                  classes=CLASSES[:1])  # fmt: skip
    made.scan()
    assert boxes_of(made) == [[10, 20, 30, 32]]


def test_turned_boxes_of_dota(root, lists):
    (root / "labelTxt").mkdir()
    lines = "gsd:0.5\n50 50 90 80 84 88 44 58 boat 0\n10 10 20 10 20 20 10 20 boat 1"
    for index in range(4):
        (root / f"labelTxt/s{index}.txt").write_text(lines)
    made = module(root, lists, layout="dota", labels=None, turned=True, classes=CLASSES[:1], resolution=20.0, chip=50)
    made.scan()
    objects = made.objects("train")[0][1]
    assert objects.ignored.tolist() == [False, True]
    assert objects.turned[0].tolist() == pytest.approx([33.5, 34.5, 25, 5, np.arctan2(3, 4)], rel=1e-3)
    upright = module(root, lists, layout="dota", labels=None, classes=CLASSES[:1])
    upright.scan()
    assert upright.objects("train")[0][1].turned is None


def test_samples_do_not_depend_on_the_number_of_workers(root, lists):
    augment = Augment("nadir", scale=(0.7, 1.5), photometric=0.5, blur=0.5, erase=0.5)
    made = module(root, lists, augment=augment, chips_per_epoch=12)
    made.setup()
    pickle.loads(pickle.dumps(made.training_dataset()))

    def epoch(workers: int) -> dict[str, bytes]:
        made.workers = workers
        loader = made.train_dataloader()
        loader.sampler.set_epoch(3)
        return {
            f"{number} {item.id}": batch["image"][i].numpy().tobytes() + batch["target"][i]["boxes"].numpy().tobytes()
            for number, batch in enumerate(loader)
            for i, item in enumerate(batch["item"])
        }

    alone = epoch(0)
    assert len(alone) == 12
    assert alone == epoch(1) == epoch(2)


def test_nodata_hides_objects(root, lists, write_raster):
    values = image(BOXES)
    values[:, :, :100] = 0
    write_raster(root / "images/s0.tif", values, nodata=0)
    made = module(root, lists, chip=100, chips_per_epoch=40, min_valid=0.0, min_visible=0.7)
    made.scan()
    dataset = made.training_dataset()
    for index in range(40):
        sample = dataset[SampleKey(0, 0, index)]
        for x1, y1, x2, y2 in sample["target"]["boxes"].int().tolist():
            assert sample["valid"][y1:y2, x1:x2].float().mean() >= 0.7


def test_prediction_of_whole_scenes(root, lists):
    made = module(root, lists)
    made.setup()
    dataset = made.prediction_dataset([root / "images/s2.tif"])
    sample = dataset[0]
    assert sample["image"].shape == (2, SIDE, SIDE)
    assert sample["target"]["boxes"].shape == (0, 4)
    assert dataset.reader.grid(sample["item"]).crs == CRS.from_epsg(32633)
    assert made.prediction_scene(root / "images/s2.tif").bands == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "layout 'vector' needs `labels`"),
        ({"labels": "labels/{name}.tif"}, "layout 'vector' needs `labels`"),
        ({"annotations": "a.json"}, "belong to other layouts"),
        ({"vector": VectorOptions(background="boat")}, "are for masks"),
        ({"layout": "voc", "vector": VectorOptions()}, "vector is for vector files only"),
        ({"layout": "pascal"}, "no layout 'pascal' of objects"),
        ({"empty_share": 1.5}, "empty_share is 1.5"),
        ({"eval_overlap": 1.0}, "eval_overlap is 1"),
        ({"classes": CLASSES[:1]}, "is 'buoy'.*in no class"),
        ({"split": FolderSplit()}, "needs '{split}' in images"),
        ({"masks": True, "turned": True}, "choose one"),
        ({"vector": VectorOptions(column="kind")}, "has no column 'kind'"),
    ],
)
def test_wrong_options_are_named(root, options, message):
    with pytest.raises(DataError, match=message):
        module(root, **{"split": SceneSplit()} | options).scan()
