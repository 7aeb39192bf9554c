"""Frames: every usual kind of picture is read right, every broken one is named."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.augment import resize_pixels
from datamodules.batch import Item, Window
from datamodules.classes import Classes, ClassSpec
from datamodules.errors import DataError
from datamodules.frames import Fit, FrameReader, PictureReader, read_codes, read_fitted, read_image

RED = np.full((6, 8, 3), (250, 20, 10), np.uint8)
CLASSES = Classes([ClassSpec("a", (0,)), ClassSpec("b", (1,)), ClassSpec("c", (2,))], ignore=[9])


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.webp"])
def test_colours_come_in_the_order_red_green_blue(tmp_path, name):
    image, valid = read_image(save(tmp_path / name, RED))
    assert image.dtype == np.uint8
    assert valid.all()
    assert np.abs(image.astype(int) - RED).max() <= 10


def test_16_bit(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.full((4, 5, 3), (100, 2000, 40000), np.uint16))  # OpenCV's order is blue green red
    image, _ = read_image(path)
    assert image.dtype == np.uint16
    assert image[0, 0].tolist() == [40000, 2000, 100]


def test_grey_becomes_three_bands(tmp_path):
    image, _ = read_image(save(tmp_path / "a.png", np.full((4, 5), 77, np.uint8)))
    assert image.shape == (4, 5, 3)
    assert (image == 77).all()


def test_transparent_pixels_are_invalid(tmp_path):
    rgba = np.dstack([RED, np.full((6, 8), 255, np.uint8)])
    rgba[:2, :, 3] = 0
    image, valid = read_image(save(tmp_path / "a.png", rgba))
    assert image[3, 3].tolist() == [250, 20, 10]
    assert not valid[:2].any()
    assert valid[2:].all()


def test_exif_does_not_turn_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it by 90 degrees
    image, _ = read_image(save(tmp_path / "a.jpg", RED, exif=exif))
    assert image.shape == (6, 8, 3)


def test_float_pictures_are_refused(tmp_path):
    path = str(tmp_path / "a.tif")
    cv2.imwrite(path, np.zeros((4, 5), np.float32))
    with pytest.raises(DataError, match="float32"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("read", [read_image, read_codes])
def test_truncated_pictures_are_named(tmp_path, name, kept, read):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    path = tmp_path / name
    save(path, noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=name):
        read(str(path))


@pytest.mark.parametrize("read", [read_image, read_codes])
def test_what_is_no_picture_is_named(tmp_path, read):
    (tmp_path / "a.png").write_text("../../dummy.jpg")
    with pytest.raises(DataError, match="not a picture"):
        read(str(tmp_path / "a.png"))


def test_a_jpeg_with_a_thumbnail_is_cut_off_where_its_own_end_is_missing(tmp_path):
    path = tmp_path / "a.jpg"
    save(path, np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8))
    data = path.read_bytes()
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data  # a whole JPEG in a header segment
    whole = data[:2] + thumbnail + data[2:]
    path.write_bytes(whole)
    assert read_image(str(path))[0].shape == (60, 80, 3)
    path.write_bytes(whole[:-400])
    with pytest.raises(DataError, match="truncated"):
        read_image(str(path))


def test_palette_masks_give_indices(tmp_path):
    codes = np.array([[0, 1], [2, 9]], np.uint8)
    picture = Image.fromarray(codes).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 759)
    picture.putdata(codes.ravel().tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_codes(str(tmp_path / "a.png")), codes)


def test_kinds_of_masks(tmp_path):
    bits = np.array([[True, False]])
    assert read_codes(save(tmp_path / "a.png", bits)).tolist() == [[1, 0]]
    wide = np.array([[1000, 2]], np.uint16)
    assert read_codes(save(tmp_path / "b.png", wide)).tolist() == [[1000, 2]]
    assert read_codes(save(tmp_path / "c.png", np.dstack([RED, RED[..., 0]]))).shape == (6, 8, 3)


def test_polygons(tmp_path):
    path = tmp_path / "a_gtFine_polygons.json"
    path.write_text(json.dumps({"imgHeight": 3, "imgWidth": 4, "objects": []}))
    assert read_codes(str(path)).tolist() == [[0] * 4] * 3


@pytest.fixture
def item(tmp_path):
    codes = np.zeros((20, 30), np.uint8)
    codes[:, 10:] = 1
    codes[:, 20:] = 9
    image = np.repeat(codes[..., None] * 20, 3, axis=2)
    return Item(
        id="a", group="a", image=save(tmp_path / "a.png", image), label=save(tmp_path / "a_mask.png", codes)
    )


def test_reader(item):
    raw = FrameReader(CLASSES, None).read(item)
    assert raw.values.shape == (3, 20, 30)
    assert raw.mask.shape == raw.valid.shape == (20, 30)
    assert raw.mask[0, [0, 15, 25]].tolist() == [0, 1, 255]


@pytest.mark.parametrize("size", [(10, 15), (40, 60), (13, 29)])
def test_image_and_mask_are_resized_together(item, size):
    reader = FrameReader(CLASSES, size)
    raw = reader.read(item)
    assert raw.values.shape == (3, *size)
    np.testing.assert_array_equal(raw.mask, reader.read_mask(item))
    inner = np.isin(raw.values[0], (0, 20, 180))
    assert inner.mean() > 0.8
    expected = np.array([0, 1, 255])[np.searchsorted((0, 20, 180), raw.values[0][inner])]
    assert (raw.mask[inner] == expected).mean() > 0.99


def test_a_window_is_cut_from_the_resized_frame(item):
    reader = FrameReader(CLASSES, (10, 15))
    whole, part = reader.read(item), reader.read(Item("a", "a", item.image, item.label, Window(2, 3, 5, 6)))
    np.testing.assert_array_equal(part.values, whole.values[:, 2:7, 3:9])
    np.testing.assert_array_equal(part.mask, whole.mask[2:7, 3:9])


def test_without_a_label_all_is_ignored(item):
    raw = FrameReader(CLASSES, None).read(Item("a", "a", item.image))
    assert (raw.mask == 255).all()


def test_a_mask_of_another_size_is_named_with_both(item, tmp_path):
    save(tmp_path / "a_mask.png", np.zeros((20, 31), np.uint8))
    with pytest.raises(DataError, match=r"a_mask\.png: the mask is 20 x 31 .* 20 x 30"):
        FrameReader(CLASSES, (10, 10)).read(item)


def test_missing_file(item):
    with pytest.raises(DataError, match="No such file"):
        read_image("/nowhere/a.png")
    with pytest.raises(DataError, match="nowhere"):
        read_codes("/nowhere/a.png")


# ------------------------------------------------------------------------------------ JPEG at a smaller scale


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with detail of many pixels, which JPEG keeps."""
    rows, cols = np.mgrid[:height, :width] / 24
    waves = np.stack([np.sin(rows + 0.3 * cols), np.cos(cols), np.sin(rows - cols)], axis=-1)
    return (128 + 90 * waves).astype(np.uint8)


@given(
    own=st.tuples(st.integers(9, 200), st.integers(9, 200)),
    wanted=st.tuples(st.integers(1, 220), st.integers(1, 220)),
)
@settings(max_examples=60)
def test_a_jpeg_is_decoded_no_smaller_than_wanted_and_not_needlessly_large(tmp_path_factory, own, wanted):
    path = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    Image.fromarray(smooth(*own)).save(path, quality=95)
    image, valid, said = read_fitted(str(path), lambda size: wanted)
    assert said == own
    assert valid.shape == image.shape[:2]
    assert all(side >= min(a, b) for side, a, b in zip(valid.shape, own, wanted, strict=True))
    assert valid.shape in [tuple(-(-side // divisor) for side in own) for divisor in (1, 2, 4, 8)]
    halved = [-(-side // 2) for side in valid.shape]
    assert valid.shape[0] * 8 <= own[0] + 7 or any(a < b for a, b in zip(halved, wanted, strict=True))


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_its_pixels_are_near_the_mean_of_those_they_stand_for(tmp_path, divisor, kind):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # asks for a quarter turn
    Image.fromarray(smooth(240, 320)).convert(kind).save(path, quality=95, exif=exif)
    size = (240 // divisor, 320 // divisor)
    small, _, _ = read_fitted(str(path), lambda own: size)
    whole, valid = read_image(str(path))
    mean, _ = resize_pixels(whole, valid, size=size)
    assert small.shape == (*size, 3)
    difference = np.abs(small.astype(int) - mean)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) < 6


def test_all_readers_see_the_same_pixels(tmp_path):
    path, mask = tmp_path / "a.jpg", tmp_path / "a_mask.png"
    Image.fromarray(smooth(90, 121)).save(path)
    save(mask, np.zeros((90, 121), np.uint8))
    item = Item("a", "a", str(path), str(mask))
    labelled = FrameReader(CLASSES, (20, 30)).read(item)
    assert labelled.values.shape == (3, 20, 30)
    plain = PictureReader(Fit(None, 30)).read(Item("a", "a", str(path)))
    assert plain.values.shape == (3, 22, 30)
    again = PictureReader(lambda own: (20, 30)).read(item)
    np.testing.assert_array_equal(labelled.values, again.values)
    # the mask is compared with the picture's own size, not with the decoded one's
    save(mask, np.zeros((45, 61), np.uint8))
    with pytest.raises(DataError, match=r"the mask is 45 x 61 .* is 90 x 121"):
        FrameReader(CLASSES, (20, 30)).read(item)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_jpeg_is_named_at_any_scale(tmp_path, kept):
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(240, 320)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"a\.jpg: not a picture, or a truncated"):
        read_fitted(str(path), lambda own: (30, 40))
