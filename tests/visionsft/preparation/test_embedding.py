"""Embeddings beside plain passes of the backbone, their files beside pyarrow, shapely and rasterio, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin
from sklearn.metrics.pairwise import cosine_similarity

from backbones import BackboneError
from datamodules import DataError
from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError, WriteError
from visionsft.preparation import embeddingfiles
from visionsft.preparation.embedding import (
    Encoder,
    Losses,
    embed,
    embed_image,
    embed_images,
    open_encoder,
    valid_share,
)
from visionsft.preparation.embeddingfiles import EmbeddingFile, Place
from visionsft.preparation.exploring import draw_map, find_neighbours, project
from visionsft.runs import Run

BANDS = ("red", "green", "nir")


@pytest.fixture(scope="module")
def encoder(label_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of pictures of 32x32, pretrained as little as can be."""
    runs = tmp_path_factory.mktemp("runs")
    return open_encoder(ClassificationConfig.model_validate({**label_values, "runs": runs}))


def read(path: Path) -> tuple[list[Place], NDArray[np.float32]]:
    pieces = list(EmbeddingFile(path).pieces())
    return [place for places, _ in pieces for place in places], np.concatenate([vectors for _, vectors in pieces])


def write_scene(path: Path, *, side: int = 96, epsg: int | None = 32631, bands: tuple[str, ...] = BANDS) -> Path:
    """Random uint16; 0 (nodata) in the upper left 40 x 40."""
    values = np.random.default_rng(0).integers(1500, 4500, (len(bands), side, side)).astype(np.uint16)
    values[:, :40, :40] = 0
    place = {} if epsg is None else {"crs": f"EPSG:{epsg}", "transform": from_origin(500_000, 5_600_000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", width=side, height=side, count=len(bands), dtype="uint16",
                       nodata=0, **place) as file:  # fmt: skip
        file.write(values)
        file.descriptions = bands
    return path


@pytest.fixture(scope="module")
def scene_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of scenes of three bands, with chips of 32; its weights are random."""
    from visionsft.build import build_backbone, build_model
    from visionsft.config import SegmentationConfig

    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = SegmentationConfig.model_validate({
        "name": "run", "runs": folder, "backbone": {"name": "test_efficientnet", "weights": "none"},
        "data": {"kind": "geotiff", "root": folder, "chip": 32, "normalise": "data",
                 "classes": [{"name": "low", "values": 0}, {"name": "high", "values": 1}]},
        "trainer": {"precision": "32", "accelerator": "cpu"},
    })  # fmt: skip
    run = Run.create(config)
    model = build_model(config, build_backbone(config, BANDS, pretrained=False), 2)
    run.checkpoints.mkdir()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "callbacks": {}}, run.checkpoints / "best.ckpt")
    run.write_json("data.json", {"bands": BANDS, "dtype": "uint16", "classes": ["low", "high"],
                                 "normalisation": {"mean": [3000.0] * 3, "std": [1000.0] * 3}})  # fmt: skip
    return open_encoder(run)


# ------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_rows_are_the_means_of_the_last_map(encoder: Encoder, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    found = embed(encoder, split="val", out=out)
    places, vectors = read(out)
    assert (found.count, found.channels, found.failed) == (8, encoder.channels, {})
    assert [place.label for place in places] == ["bright"] * 4 + ["dark"] * 4
    loader = encoder.data.evaluation_loader("val")
    with torch.no_grad():
        expected = torch.cat([encoder.backbone(batch["image"])[0].mean((2, 3)) for batch in loader])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert [place.id for place in places] == [item.id for batch in loader for item in batch["item"]]
    assert all((place.height, place.width, place.valid) == (32, 32, 1.0) for place in places)
    assert EmbeddingFile(out).identity["backbone"] == "test_efficientnet"


def test_files_are_embedded_as_the_split_is(encoder: Encoder, labelled_pictures: Path, tmp_path: Path) -> None:
    embed(encoder, split="val", out=tmp_path / "split.npz")
    found = embed(encoder, [labelled_pictures / "val" / "bright"], out=tmp_path / "files.npz")
    assert found.count == 4
    places, vectors = read(tmp_path / "files.npz")
    np.testing.assert_allclose(vectors, read(tmp_path / "split.npz")[1][:4], atol=1e-5)
    np.testing.assert_allclose(embed_image(encoder, places[2].path), vectors[2], atol=1e-5)


def test_a_row_for_each_position(encoder: Encoder, labelled_pictures: Path, tmp_path: Path) -> None:
    path = labelled_pictures / "val" / "dark" / "dark0.png"
    dense = Encoder(open_layer(encoder, "blocks.1"), encoder.data, True, "float32", encoder.identity)
    embed(dense, path, out=tmp_path / "dense.npz", dense=True)
    places, vectors = read(tmp_path / "dense.npz")
    whole = dense.map(encoder.data.prediction_dataset([path])[0]["image"][None])[0]
    assert whole.shape[1:] == (32 // dense.stride, 32 // dense.stride)
    np.testing.assert_allclose(vectors, whole.flatten(1).T, atol=1e-5)
    covered = np.zeros((32, 32), int)
    for place in places:
        covered[place.row : place.row + place.height, place.col : place.col + place.width] += 1
    assert (covered == 1).all()
    assert places[1].id == f"{path}#0,1"


def open_layer(encoder: Encoder, layer: str) -> Any:
    from backbones import at_layer, create_backbone

    torch.manual_seed(1)
    return at_layer(create_backbone(encoder.backbone.name, weights="none").eval(), layer)


def test_bfloat16_is_near_and_takes_half_the_room(
    label_values: dict[str, Any], encoder: Encoder, labelled_pictures: Path, tmp_path: Path
) -> None:
    config = ClassificationConfig.model_validate({**label_values, "runs": tmp_path})
    embed(config, split="train", out=tmp_path / "half.parquet", dtype="bf16")
    embed(encoder, split="train", out=tmp_path / "full.parquet")
    half, full = (read(tmp_path / f"{name}.parquet")[1] for name in ("half", "full"))
    assert (half.view(np.uint32) & 0xFFFF == 0).all()
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    sizes = [
        pq.ParquetFile(tmp_path / f"{name}.parquet").metadata.row_group(0).column(9).total_compressed_size
        for name in ("half", "full")
    ]
    assert sizes[0] < 0.75 * sizes[1]


def test_memory_is_let_go_in_row_groups(
    encoder: Encoder, labelled_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddingfiles, "GROUP_ROWS", 5)
    embed(encoder, split="train", out=tmp_path / "rows.parquet")
    with pq.ParquetFile(tmp_path / "rows.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [8, 8]
    assert len(read(tmp_path / "rows.parquet")[0]) == 16


# -------------------------------------------------------------------------------------------------- scenes


def test_cells_of_a_scene_lie_where_they_are(scene_encoder: Encoder, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    found = embed(scene_encoder, scene, out=tmp_path / "cells.parquet", cell=40)
    assert (found.count, found.empty) == (8, 1)
    table = pq.read_table(tmp_path / "cells.parquet")
    shapes = shapely.from_wkb(table["geometry"].to_pylist())
    with rasterio.open(scene) as file:
        whole = shapely.box(*file.bounds)
    assert shapely.union_all(shapes).area == whole.area - 400**2
    assert shapely.area(shapes).sum() == whole.area - 400**2
    assert all(shapely.is_ccw(shape.exterior) for shape in shapes)
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 32631}
    assert [(row["row"], row["col"]) for row in table.to_pylist()][:2] == [(0, 40), (0, 80)]


def test_only_what_is_valid_counts(scene_encoder: Encoder, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    embed(scene_encoder, scene, out=tmp_path / "cells.npz", cell=64)
    places, vectors = read(tmp_path / "cells.npz")
    assert places[0].valid == pytest.approx(1 - 40**2 / 64**2)
    with rasterio.open(scene) as file:
        values = (file.read()[:, :64, :64].astype(np.float32) - 3000) / 1000
    values[:, :40, :40] = 0
    found = scene_encoder.map(torch.from_numpy(values)[None])[0].numpy()
    step = scene_encoder.stride
    valid = np.ones((64, 64))
    valid[:40, :40] = 0
    weight = valid.reshape(64 // step, step, 64 // step, step).mean((1, 3))
    np.testing.assert_allclose(vectors[0], (found * weight).sum((1, 2)) / weight.sum(), atol=1e-4)


def test_scenes_of_two_crs_are_in_degrees(scene_encoder: Encoder, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / f"{epsg}.tif", epsg=epsg) for epsg in (32631, 32632)]
    embed(scene_encoder, scenes, out=tmp_path / "cells.parquet", cell=96)
    table = pq.read_table(tmp_path / "cells.parquet")
    assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["crs"]["id"]["code"] == 4326
    west, east = (shape.centroid.x for shape in shapely.from_wkb(table["geometry"].to_pylist()))
    assert (round(west), round(east)) == (3, 9)


def test_without_a_crs_there_is_no_geometry(scene_encoder: Encoder, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", epsg=None)
    embed(scene_encoder, scene, out=tmp_path / "cells.parquet")
    assert "geometry" not in pq.read_table(tmp_path / "cells.parquet").schema.names


def test_a_dense_map_is_the_map_of_the_whole(scene_encoder: Encoder, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    found = embed(scene_encoder, scene, out=tmp_path / "map.tif", dense=True)
    with rasterio.open(scene) as file:
        values = (file.read().astype(np.float32) - 3000) / 1000
        bounds = file.bounds
    values[:, :40, :40] = 0
    expected = scene_encoder.map(torch.from_numpy(values)[None])[0].numpy()
    empty = 40 // scene_encoder.stride
    with rasterio.open(tmp_path / "map.tif") as file:
        band = file.read()
        assert file.bounds == bounds
        assert (file.count, file.dtypes[0], file.crs.to_epsg()) == (scene_encoder.channels, "float32", 32631)
        assert json.loads(file.tags()[embeddingfiles.MARK])["backbone"] == "test_efficientnet"
    assert np.isnan(band[:, :empty, :empty]).all()
    known = ~np.isnan(band)
    assert known.sum() == found.count * found.channels
    np.testing.assert_allclose(band[known], expected[known], atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "scene.tif"]


def test_a_large_map_has_no_seams(scene_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionsft.preparation import embeddingmaps

    scene = write_scene(tmp_path / "scene.tif", side=410)
    embed(scene_encoder, scene, out=tmp_path / "small.tif", dense=True)
    monkeypatch.setattr(embeddingmaps, "SIDE", 1024)
    embed(scene_encoder, scene, out=tmp_path / "whole.tif", dense=True)
    tiled, whole = (rasterio.open(tmp_path / f"{name}.tif").read() for name in ("small", "whole"))
    assert tiled.shape == whole.shape == (scene_encoder.channels, 13, 13)
    np.testing.assert_array_equal(np.isnan(tiled), np.isnan(whole))
    gap = np.nanmean(np.abs(tiled - whole))
    assert 0 < gap < 0.1 * np.nanstd(whole)  # tiles' edges are seen by few


@pytest.mark.parametrize(("size", "stride"), [((9, 13), 4), ((8, 8), 4)])
def test_valid_shares_are_means(size: tuple[int, int], stride: int) -> None:
    valid = np.random.default_rng(0).random(size) > 0.5
    rows, cols = (-(-side // stride) for side in size)
    found = valid_share(valid, (rows, cols), stride)
    for row in range(rows):
        for col in range(cols):
            part = valid[row * stride : (row + 1) * stride, col * stride : (col + 1) * stride]
            assert found[row, col] == pytest.approx(part.sum() / stride**2)


# ------------------------------------------------------------------------------------- neighbours and pictures


def test_neighbours_are_scikit_learns(encoder: Encoder, labelled_pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    embed(encoder, split="train", out=out)
    places, vectors = read(out)
    similar = cosine_similarity(vectors)[3]
    order = [index for index in np.argsort(-similar) if index != 3][:5]
    found = find_neighbours(out, places[3].id, top=5)
    np.testing.assert_allclose([each.similarity for each in found], similar[order], atol=1e-5)
    assert {each.place.label for each in found[:3]} == {places[3].label}
    assert places[3].id not in {each.place.id for each in found}
    assert len(find_neighbours(out, places[3].id, top=99)) == 15


def test_neighbours_of_a_picture(encoder: Encoder, labelled_pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.npz"
    embed(encoder, labelled_pictures / "train" / "dark", out=out)
    query = labelled_pictures / "test" / "dark" / "dark0.png"
    assert len(find_neighbours(out, query, encoder=encoder, top=3)) == 3
    with pytest.raises(ConfigError, match="its encoder is needed"):
        find_neighbours(out, query)
    other = Encoder(encoder.backbone, encoder.data, True, "bf16", encoder.identity | {"dtype": "bf16"})
    with pytest.raises(DataError, match="dtype is 'bf16', in the file 'float32'"):
        find_neighbours(out, query, encoder=other)
    with pytest.raises(DataError, match=r"neither an id .* nor an image; nearest id: .*dark0\.png"):
        find_neighbours(out, str(labelled_pictures / "train" / "dark" / "dark00.png"), encoder=encoder)
    with pytest.raises(DataError, match="has 3 numbers"):
        find_neighbours(out, np.ones(3, np.float32))


def test_a_map_of_embeddings(encoder: Encoder, labelled_pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    embed(encoder, split="train", out=out)
    drawn = draw_map(out, tmp_path / "map.png", thumbnails=True)
    assert cv2.imread(str(tmp_path / "map.png")).shape[1] > 500
    assert drawn.points.shape == (16, 2)
    with pytest.raises(WriteError, match="exists; --overwrite"):
        draw_map(out, tmp_path / "map.png")
    with pytest.raises(ConfigError, match="no suffix of a map picture"):
        draw_map(out, tmp_path / "map.gif")


def test_components_are_scikit_learns(encoder: Encoder, labelled_pictures: Path, tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    out = tmp_path / "rows.npz"
    embed(encoder, split="train", out=out)
    found = project(out)
    if found.method != "PCA":
        pytest.skip("UMAP is installed")
    expected = PCA(2).fit_transform(read(out)[1])
    np.testing.assert_allclose(np.abs(found.points), np.abs(expected), atol=1e-4)
    assert len(project(out, points=7).places) == 7
    assert project(out, points=7).of == 16


def test_umap_is_used_where_it_is_installed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Umap:
        """What is asked of umap-learn's class of that name."""

        def __init__(self, *, n_neighbors: int, metric: str, random_state: int) -> None:
            assert (n_neighbors, metric, random_state) == (15, "cosine", 3)

        def fit_transform(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    embed(encoder, split="train", out=tmp_path / "rows.npz")
    found = project(tmp_path / "rows.npz", seed=3)
    assert (found.method, found.axes) == ("UMAP", ("UMAP 1", "UMAP 2"))
    np.testing.assert_array_equal(found.points, read(tmp_path / "rows.npz")[1][:, :2])


# ------------------------------------------------------------------------------------------------ bad input


def test_unreadable_frames_are_named_and_the_rest_is_written(
    encoder: Encoder, labelled_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    good = labelled_pictures / "val" / "dark" / "dark0.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    given = [tmp_path / "bad.png", good, tmp_path / "cut.png"]
    found = embed(encoder, given, out=tmp_path / "rows.npz")
    assert found.count == 1
    assert list(found.failed) == [str(tmp_path / "bad.png"), str(tmp_path / "cut.png")]
    assert "2 images can't be used" in found.table()
    with pytest.raises(DataError, match="nothing to embed"):
        embed(encoder, tmp_path / "bad.png", out=tmp_path / "none.parquet")
    assert not list(tmp_path.glob("*none*"))


def test_scenes_of_other_bands_are_named(scene_encoder: Encoder, tmp_path: Path) -> None:
    good = write_scene(tmp_path / "good.tif")
    bad = write_scene(tmp_path / "bad.tif", bands=("red", "green", "swir"))
    found = embed(scene_encoder, [bad, good], out=tmp_path / "cells.npz")
    assert "no band 'nir'" in found.failed[str(bad)]
    assert found.count > 0


def test_what_is_refused_before_anything_is_computed(
    encoder: Encoder, label_values: dict[str, Any], labelled_pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.npz"
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "did you mean '.parquet'", {"out": tmp_path / "rows.parquett", "split": "val"}),
        (ConfigError, "give either inputs or a split", {"out": out}),
        (ConfigError, "give dense, too", {"out": tmp_path / "map.tif", "split": "val"}),
        (ConfigError, "maps are of GeoTIFF scenes", {"out": tmp_path / "map.tif", "inputs": "x.png", "dense": True}),
        (ConfigError, "cell is 9", {"out": out, "split": "val", "cell": 9}),
        (DataError, "split 'vall' does not exist.*nearest: val", {"out": out, "split": "vall"}),
        (DataError, "no image in this folder", {"out": out, "inputs": tmp_path}),
        (DataError, "no such file", {"out": out, "inputs": tmp_path / "gone.png"}),
    ]
    (labelled_pictures / "x.png").write_bytes(b"")
    for kind, message, options in refused:
        if options.get("inputs") == "x.png":
            options["inputs"] = labelled_pictures / "x.png"
        with pytest.raises(kind, match=message):
            embed(encoder, options.pop("inputs", ()), **options)
    out.write_bytes(b"mine")
    with pytest.raises(WriteError, match="exists; --overwrite"):
        embed(encoder, split="val", out=out)
    assert out.read_bytes() == b"mine"
    config = ClassificationConfig.model_validate({**label_values, "runs": tmp_path})
    with pytest.raises(BackboneError, match=r"no layer 'blocks\.22' with a map; did you mean 'blocks\.2'"):
        open_encoder(config, layer="blocks.22")


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_files_of_others_are_refused(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa

    other = tmp_path / f"other{suffix}"
    if suffix == ".npz":
        np.savez(other, a=np.zeros(3))
    else:
        pq.write_table(pa.table({"id": ["a"]}), other)
    with pytest.raises(DataError, match="was not made by `visionsft embed`"):
        EmbeddingFile(other)
    other.write_bytes(other.read_bytes()[:-60])
    with pytest.raises(DataError, match="or a truncated one"):
        EmbeddingFile(other)
    other.write_bytes(b"")
    with pytest.raises(DataError, match="or a truncated one"):
        EmbeddingFile(other)
    with pytest.raises(DataError, match=f"no such file; nearest: .*other{suffix}"):
        EmbeddingFile(tmp_path / f"otherr{suffix}")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match=r"are read from \.parquet and \.npz files"):
        EmbeddingFile(tmp_path / "x.csv")


def test_a_full_disk_leaves_nothing(
    encoder: Encoder, labelled_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embeddingfiles.NpzRows, "close", full)
    with pytest.raises(WriteError, match="can't write"):
        embed(encoder, split="val", out=tmp_path / "rows.npz")
    assert list(tmp_path.iterdir()) == []


def test_images_of_several_sizes_are_batched_apart(encoder: Encoder, labelled_pictures: Path) -> None:
    from visionsft.preparation.embedding import Image

    images = [
        Image(torch.randn(3, side, 32), np.ones((side, 32), bool), Place(str(side), "", "", "", 0, 0, side, 32), None)
        for side in (32, 32, 64, 32)
    ]
    rows = list(embed_images(encoder, images, dense=False, losses=Losses()))
    assert [len(each.places) for each in rows] == [2, 1, 1]
    for image, vector in zip(images, np.concatenate([each.vectors for each in rows]), strict=True):
        np.testing.assert_allclose(vector, encoder.map(image.pixels[None])[0].mean((1, 2)), atol=1e-5)
