"""Object files: what a detector found, as a vector layer of a scene, or as COCO's JSON of frames.

Layers are written band by band as `visionsft.prediction.vectorising` does it: no more than a band is held, and the
file has its name only once it is complete. A box is a quadrilateral on the ground, whichever way the scene is turned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from visionsft.files import atomic_path, write_text
from visionsft.prediction.merging import corners_of
from visionsft.prediction.slicing import SceneDetections
from visionsft.prediction.vectorising import Ground, geometry_field, open_layer

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def open_objects(
    path: str | Path, *, transform: Affine, crs: CRS | None, names: Sequence[str], outlined: bool = False
) -> Iterator[ObjectWriter]:
    """A writer for the objects of one scene; the file has its name only once the block has ended well.

    path: its suffix chooses the format, see `visionsft.prediction.vectorising.FORMATS`. transform: (col, row) of a
    pixel's corner to coordinates of the CRS; without a CRS they are written as they are. names: of the classes, in
    the order of their indices. outlined: the geometries are the objects' outlines and not their boxes.
    """
    with open_layer(path, crs=crs, geometry="MultiPolygon" if outlined else "Polygon") as spool:
        writer = ObjectWriter(spool, ground=Ground(transform, crs), names=names, outlined=outlined)
        yield writer
        writer.finish()


class ObjectWriter:
    """Spools objects as Arrow batches.

    Columns: class, class_id (from 0), score (0..1), x1, y1, x2, y2 (the upright box in pixels) and the geometry.
    """

    def __init__(self, spool: IO[bytes], *, ground: Ground, names: Sequence[str], outlined: bool) -> None:
        import pyarrow.ipc

        self._ground, self._names, self._outlined = ground, tuple(names), outlined
        self._schema = _make_schema()
        self._spool = pyarrow.ipc.new_stream(spool, self._schema)

    def add(self, found: SceneDetections) -> None:
        """Some more of them."""
        import pyarrow as pa
        import shapely

        if not len(found):
            return
        labels = found.labels.numpy()
        boxes = found.boxes.double().numpy()
        shapes = self._place(outlines_of(found) if self._outlined else shapely.polygons(corners(found)))
        columns = [
            pa.array([self._names[index] for index in labels.tolist()], pa.string()),
            pa.array(labels.astype(np.int32)),
            pa.array(found.scores.double().numpy()),
            *(pa.array(side) for side in boxes.T),
            pa.array(shapely.to_wkb(shapes), pa.large_binary()),
        ]
        self._spool.write_batch(pa.record_batch(columns, schema=self._schema))

    def finish(self) -> None:
        """There are no more."""
        self._spool.close()

    def _place(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """On the ground, outer rings counterclockwise."""
        import shapely

        placed = shapely.transform(shapes, lambda points: np.stack(self._ground.place(points), axis=1))
        return np.asarray(shapely.orient_polygons(placed), object)


def _make_schema() -> pa.Schema:
    import pyarrow as pa

    sides = [(name, pa.float64()) for name in ("x1", "y1", "x2", "y2")]
    columns = [("class", pa.string()), ("class_id", pa.int32()), ("score", pa.float64()), *sides]
    return pa.schema([*columns, geometry_field()])


def corners(found: SceneDetections) -> NDArray[np.float64]:
    """(N, 4, 2) x, y of the corners of boxes, turned ones if they are."""
    if found.turned is not None:
        return np.stack([corners_of(each) for each in found.turned.double().numpy()])
    return found.boxes.double().numpy()[:, [0, 1, 0, 3, 2, 3, 2, 1]].reshape(-1, 4, 2)


def outlines_of(found: SceneDetections) -> NDArray[np.object_]:
    """(N,) multipolygons; of an object without any pixel, its box."""
    import shapely

    assert found.outlines is not None, "a detector without masks"
    boxes = shapely.polygons(corners(found))
    shapes = np.where(shapely.is_empty(found.outlines), boxes, found.outlines)
    whole = np.empty(len(shapes), object)
    for index, each in enumerate(shapes):
        whole[index] = each if each.geom_type == "MultiPolygon" else shapely.MultiPolygon([each])
    return whole


# ----------------------------------------------------------------------------------------------------- COCO


def write_coco(
    path: str | Path, found: SceneDetections, *, image: str, size: tuple[int, int], names: Sequence[str]
) -> None:
    """The objects of one frame, image 1, as COCO's annotations with scores. size: (H, W) of the frame."""
    with open_coco(path, names=names) as writer:
        writer.add(found, {"id": 1, "file_name": image, "height": size[0], "width": size[1]})


@contextmanager
def open_coco(path: str | Path, *, names: Sequence[str]) -> Iterator[CocoWriter]:
    """A writer for the objects of any number of frames; the file has its name only once the block has ended well.

    Categories are the class indices, from 0, with their names. Outlines and turned boxes are polygons under
    "segmentation"; COCO's polygons have no holes.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
        TemporaryFile("w+", encoding="utf-8", dir=temporary.parent) as images,
    ):
        categories = [{"id": index, "name": name} for index, name in enumerate(names)]
        file.write(f'{{"categories": {json.dumps(categories)}, "annotations": [')
        yield CocoWriter(file, cast(TextIO, images))
        file.write('], "images": [')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write("]}")


class CocoWriter:
    """Writes frame by frame: no more than one frame's objects are held."""

    def __init__(self, annotations: TextIO, images: TextIO) -> None:
        self._annotations, self._images = annotations, images
        self.count, self.frames = 0, 0
        """Objects and frames so far."""

    def add(self, found: SceneDetections, image: Mapping[str, object]) -> None:
        """The next frame's. image: its entry under "images"; its "id" is that of the objects' "image_id"."""
        self._images.write((",\n" if self.frames else "") + json.dumps(image))
        self.frames += 1
        for each in _annotations(found, image_id=image["id"]):
            self.count += 1
            self._annotations.write(
                (",\n" if self.count > 1 else "") + json.dumps({"id": self.count, **each})
            )


def join_coco(files: Iterable[Path], results: str | Path, images: str | Path) -> None:
    """Of frames, each written by `write_coco`: COCO's results, one list, and its images and categories.

    results: what `COCO.loadRes` reads; the "image_id" are those in `images`, in the order of the files from 1.
    """
    listed: list[dict[str, Any]] = []
    categories: list[dict[str, Any]] = []
    with atomic_path(results) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "["
        for number, path in enumerate(files, 1):
            one = json.loads(path.read_text(encoding="utf-8"))
            listed.append({**one["images"][0], "id": number})
            categories = one["categories"]
            for each in one["annotations"]:
                kept = {key: value for key, value in each.items() if key not in ("id", "iscrowd")}
                file.write(separator + json.dumps({**kept, "image_id": number}))
                separator = ",\n"
        file.write("[]" if separator == "[" else "]")
    write_text(images, json.dumps({"images": listed, "categories": categories}))


def _annotations(found: SceneDetections, *, image_id: object) -> Iterator[dict[str, Any]]:
    rings = _rings(found)
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), rings, strict=True)
    for (x1, y1, x2, y2), score, label, polygons in rows:
        box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        yield {
            "image_id": image_id,
            "category_id": label,
            "bbox": box,
            "area": round(box[2] * box[3], 2),
            "score": round(score, 5),
            "iscrowd": 0,
            **({"segmentation": polygons} if polygons else {}),
        }


def _rings(found: SceneDetections) -> list[list[list[float]]]:
    """Outer rings of each object as x1, y1, x2, y2...; none where a box says it all."""
    if found.outlines is not None:
        return [
            [np.round(np.asarray(part.exterior.coords)[:-1], 2).ravel().tolist() for part in each.geoms]
            for each in outlines_of(found)
        ]
    if found.turned is not None and len(found):
        return [[np.round(each, 2).ravel().tolist()] for each in corners(found)]
    return [[] for _ in range(len(found))]
