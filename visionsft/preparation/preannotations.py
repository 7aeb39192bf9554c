"""Pre-annotations: what a model says of images, in files that labelling tools open, to be corrected by people.

Frames: COCO's JSON. Scenes: GeoJSON in longitude and latitude (RFC 7946), or a GeoPackage in pixels where a scene lies
nowhere. Whole images: a table. Class maps become polygons whose borders are simplified and whose specks are dropped.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from datamodules.raster import Grid
from visionsft.files import atomic_path, write_text
from visionsft.prediction.generalising import Generaliser
from visionsft.prediction.objectfiles import corners, outlines_of
from visionsft.prediction.outlines import Tracer
from visionsft.prediction.slicing import SceneDetections
from visionsft.prediction.vectorising import Ground, geometry_field, open_layer, select
from visionsft.preparation.embeddingfiles import Place, common_crs

SIMPLIFY = 1.0
"""Of class maps: tolerance in pixels."""
SPECK = 20.0
"""Of class maps: smaller polygons and holes, in pixels, aren't for people to correct."""


@dataclass(frozen=True)
class Annotations:
    """What a model says of one image."""

    classes: list[int]
    shapes: NDArray[np.object_]
    """(N,) shapely polygons or multipolygons, in pixels of the image."""
    scores: list[float | None]
    """(N,) where the model gives one."""
    boxes: bool = False
    """Whether the shapes are upright boxes."""

    def placed(self, place: Affine) -> Annotations:
        """In the coordinates to which `place` takes these."""
        return replace(self, shapes=_moved(self.shapes, place))


def annotate_map(classes: NDArray[np.uint8]) -> Annotations:
    """classes: (H, W), 255 where there is none."""
    tracer = Tracer(classes.shape[1], simplifier=Generaliser(SIMPLIFY))
    labels: list[int] = []
    shapes: list[NDArray[np.object_]] = []
    for found in (tracer.add(classes), tracer.finish()):
        kept, _ = select(found, found.areas, min_area=SPECK, fill_holes=SPECK)
        labels += kept.classes.tolist()
        shapes.append(Ground(Affine.identity(), None).geometries(kept))
    return Annotations(labels, np.concatenate(shapes), [None] * len(labels))


def annotate_objects(found: SceneDetections) -> Annotations:
    """Boxes, turned boxes or outlines."""
    plain = found.outlines is None and found.turned is None
    shapes = shapely.polygons(corners(found)) if found.outlines is None else outlines_of(found)
    return Annotations(found.labels.tolist(), np.asarray(shapes, object), found.scores.tolist(), plain)


def _moved(shapes: NDArray[np.object_], place: Affine) -> NDArray[np.object_]:
    a, b, c, d, e, f = place[:6]
    matrix = np.array([[a, b], [d, e]])
    return np.asarray(shapely.transform(shapes, lambda points: points @ matrix.T + (c, f)), object)


# ----------------------------------------------------------------------------------------------------- COCO


def write_coco(
    path: Path, images: Sequence[tuple[str, tuple[int, int], Annotations]], *, names: Sequence[str]
) -> None:
    """images: path, (H, W) and annotations in pixels of the file; categories are the class indices plus 1.

    "file_name" is relative to the folder that all images are in. COCO's polygons have no holes: shapes with holes are
    cut into parts without. Objects have a "score".
    """
    folder = common_folder([name for name, _, _ in images])
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (height, width), found) in enumerate(images, 1):
        listed.append({
            "id": number, "file_name": Path(os.path.relpath(name, folder)).as_posix(), "height": height, "width": width
        })  # fmt: skip
        for each in _coco_rows(found):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **each})
    categories = [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(names, 1)]
    write_text(path, json.dumps({"images": listed, "categories": categories, "annotations": annotations}) + "\n")


def common_folder(paths: Sequence[str]) -> Path:
    """The deepest folder that holds all of these files."""
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]))


def _coco_rows(found: Annotations) -> Iterator[dict[str, Any]]:
    for label, shape, score in zip(found.classes, found.shapes, found.scores, strict=True):
        x1, y1, x2, y2 = shape.bounds
        rings = [] if found.boxes else [ring(part) for part in without_holes(shape)]
        yield {
            "category_id": label + 1,
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round(shape.area, 2),
            "iscrowd": 0,
            "segmentation": rings,
            **({} if score is None else {"score": round(score, 5)}),
        }


def ring(polygon: shapely.Polygon) -> list[float]:
    """x1, y1, x2, y2... of the outer ring, its first corner once."""
    corners: list[float] = np.round(shapely.get_coordinates(polygon.exterior)[:-1], 2).ravel().tolist()
    return corners


def without_holes(shape: shapely.Polygon | shapely.MultiPolygon) -> list[shapely.Polygon]:
    """Polygons without holes that cover the same: it is cut from top to bottom through its holes' middles."""
    waiting, found = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"], []
    while waiting:
        part = waiting.pop()
        if not part.interiors:
            found.append(part)
            continue
        left, top, right, bottom = part.bounds
        hole = part.interiors[0].bounds
        middle = (hole[0] + hole[2]) / 2
        for box in (shapely.box(left, top, middle, bottom), shapely.box(middle, top, right, bottom)):
            pieces = shapely.get_parts(shapely.intersection(part, box))
            waiting += [piece for piece in pieces if piece.geom_type == "Polygon"]
    return found


# --------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Ranked:
    """A suggested window on the ground."""

    rank: int
    place: Place
    grid: Grid
    why: dict[str, Any]
    """Further columns of its outline."""
    annotations: Annotations | None
    """In pixels of the window; None where whole images have classes."""


def write_layers(out: Path, windows: Sequence[Ranked], *, names: Sequence[str]) -> list[Path]:
    """The windows' outlines, and what is seen in them; returns the files.

    windows.geojson, annotations.geojson; of scenes without a CRS windows-pixels.gpkg and annotations-pixels.gpkg, in
    the coordinates of these scenes.
    """
    files = []
    for placed, ending in ((True, ".geojson"), (False, "-pixels.gpkg")):
        some = [each for each in windows if (each.grid.crs is not None) == placed]
        if not some:
            continue
        crs = common_crs([each.grid for each in some])
        files.append(out / f"windows{ending}")
        _write_windows(files[-1], some, crs)
        if any(each.annotations is not None for each in some):
            files.append(out / f"annotations{ending}")
            _write_annotations(files[-1], some, crs, names)
    return files


def _write_windows(path: Path, windows: Sequence[Ranked], crs: CRS | None) -> None:
    rows = [
        {"rank": each.rank, "item": each.place.id, "scene": each.place.path, **each.why} for each in windows
    ]
    shapes = [_on_ground(np.array([_frame(each)], object), each, crs)[0] for each in windows]
    _write_layer(path, rows, shapes, crs)


def _frame(each: Ranked) -> shapely.Polygon:
    return shapely.box(0, 0, each.place.width, each.place.height)


def _write_annotations(path: Path, windows: Sequence[Ranked], crs: CRS | None, names: Sequence[str]) -> None:
    rows: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for each in windows:
        found = each.annotations
        assert found is not None
        for label, score in zip(found.classes, found.scores, strict=True):
            row = {"class": names[label], "class_index": label, "rank": each.rank, "scene": each.place.path}
            rows.append(row if score is None else {**row, "score": score})
        shapes += list(_on_ground(found.shapes, each, crs))
    _write_layer(path, rows, shapes, crs)


def _on_ground(shapes: NDArray[np.object_], each: Ranked, crs: CRS | None) -> NDArray[np.object_]:
    """From pixels of the window to coordinates of `crs`, outer rings counterclockwise."""
    placed = _moved(shapes, each.grid.transform * Affine.translation(each.place.col, each.place.row))
    if crs is not None and each.grid.crs != crs:

        def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.stack(transform_points(each.grid.crs, crs, *points.T), axis=1)

        placed = np.asarray(shapely.transform(placed, project), object)
    return np.asarray(shapely.orient_polygons(placed), object)


def _write_layer(path: Path, rows: Sequence[dict[str, Any]], shapes: Sequence[Any], crs: CRS | None) -> None:
    import pyarrow as pa

    columns = {name: pa.array([row[name] for row in rows]) for name in (rows[0] if rows else {"class": ""})}
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    whole = any(shape.geom_type == "MultiPolygon" for shape in shapes)
    if whole:
        shapes = [shape if shape.geom_type == "MultiPolygon" else shapely.MultiPolygon([shape]) for shape in shapes]
    geometries = pa.array(list(shapely.to_wkb(np.array(shapes, object))), pa.large_binary())
    table = pa.Table.from_arrays([*columns.values(), geometries], schema=pa.schema([*fields, geometry_field()]))
    with (
        open_layer(path, crs=crs, geometry="MultiPolygon" if whole else "Polygon") as spool,
        pa.ipc.new_stream(spool, table.schema) as stream,
    ):
        stream.write_table(table)


# ---------------------------------------------------------------------------------------------------- table


def write_labels(path: Path, rows: Sequence[tuple[str, str, float | None]]) -> None:
    """rows: file, class (or classes, separated by semicolons) and the class's probability where there is one."""
    several = all(share is None for _, _, share in rows)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "classes"] if several else ["file", "class", "probability"])
        for name, label, share in rows:
            writer.writerow([name, label] if share is None else [name, label, f"{share:.4f}"])
