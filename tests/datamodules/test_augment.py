"""Augmentation: labels stay true, bits are repeatable, every number type and band count works."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from albumentations import D4, HorizontalFlip

from datamodules.augment import PIPELINES, Augment, Placement, resize_sample
from datamodules.errors import DataError

DTYPES = (np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64)


def sample(height=40, width=56, bands=3, dtype=np.uint16, seed=0):
    """An image whose every band tells its mask: band b holds mask * 10 + b."""
    mask = np.random.default_rng(seed).integers(0, 7, (height // 8, width // 8)).astype(np.uint8)
    mask = np.kron(mask, np.ones((8, 8), np.uint8))
    image = (mask[..., None].astype(np.int64) * 10 + np.arange(bands)).astype(dtype)
    return image, mask, np.ones(mask.shape, dtype=bool)


def augment(pipeline="nadir", crop=(24, 32), **options):
    return Augment(pipeline, crop=crop, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [1, 3, 5, 12])
@pytest.mark.parametrize("pipeline", list(PIPELINES))
def test_geometry_keeps_type_bands_and_alignment(pipeline, bands, dtype):
    image, mask, valid = sample(bands=bands, dtype=dtype)
    for seed in range(8):
        out, labels, seen = augment(pipeline).geometry(image, mask, valid, rng=np.random.default_rng(seed))
        assert out.dtype == dtype
        assert out.shape == (24, 32, bands)
        assert labels.shape == seen.shape == (24, 32)
        assert seen.dtype == bool
        assert seen.all()
        np.testing.assert_array_equal(out, labels[..., None].astype(np.int64) * 10 + np.arange(bands))
        assert out.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zoomed_pixels_belong_to_their_labels(dtype):
    image, mask, valid = sample(height=80, width=80, bands=6, dtype=dtype)
    for seed in range(12):
        out, labels, seen = augment(scale=(0.5, 2.0)).geometry(
            image, mask, valid, rng=np.random.default_rng(seed)
        )
        wanted = labels[seen][:, None].astype(float) * 10 + np.arange(6)
        exact = np.abs(out[seen] - wanted) < 1
        assert exact.mean() > 0.45  # the blended pixels at the blocks' edges differ
        assert out[seen].min() >= image.min() - 1e-3
        assert out[seen].max() <= image.max() + 1e-3


@pytest.mark.parametrize("pipeline", list(PIPELINES))
def test_equal_seeds_give_equal_bits(pipeline):
    image, mask, valid = sample(bands=4)
    made = augment(pipeline, scale=(0.6, 1.7), photometric=0.5, blur=0.5, erase=0.5)

    def run(seed):
        rng = np.random.default_rng(seed)
        out, labels, seen = made.geometry(image, mask, valid, rng=rng)
        normalised = np.ascontiguousarray(out.transpose(2, 0, 1), dtype=np.float32)
        return made.photometry(normalised, seen, rng=rng).tobytes() + labels.tobytes() + seen.tobytes()

    assert run(3) == run(3)
    assert len({run(seed) for seed in range(10)}) == 10


def test_driving_flips_left_right_only_and_nadir_turns_all_eight_ways():
    rows, cols = np.mgrid[:16, :16]
    image = np.stack([rows, cols], axis=-1).astype(np.uint8)
    mask, valid = rows.astype(np.uint8), np.ones((16, 16), dtype=bool)

    def views(pipeline):
        made = augment(pipeline, crop=(16, 16))
        seeds = range(100)
        return {made.geometry(image, mask, valid, rng=np.random.default_rng(s))[0].tobytes() for s in seeds}

    driving = {image.tobytes(), HorizontalFlip(p=1)(image=image)["image"].tobytes()}
    assert views("driving") == driving
    assert len(views("nadir")) == 8
    assert driving < views("nadir")
    assert views("nadir") == {D4(p=1)(image=image)["image"].tobytes() for _ in range(200)}
    assert views("none") == {image.tobytes()}


def test_driving_never_turns_up_down_when_zoomed_and_padded():
    rows = np.repeat(np.arange(30, dtype=np.uint8)[:, None], 50, axis=1)
    made = augment("driving", crop=(30, 50), scale=(0.5, 2.0))
    for seed in range(50):
        out, _, seen = made.geometry(
            rows[..., None], rows, np.ones(rows.shape, bool), rng=np.random.default_rng(seed)
        )
        column = out[:, seen.any(axis=0), 0].astype(int)
        inside = column[seen[:, seen.any(axis=0)].all(axis=1)]
        assert (np.diff(inside, axis=0) >= 0).all()


def test_small_samples_are_padded_and_not_stretched():
    image, mask, valid = sample(16, 16, bands=2)
    out, labels, seen = augment("none", crop=(24, 40)).geometry(
        image, mask, valid, rng=np.random.default_rng(1)
    )
    assert seen.sum() == 16 * 16
    assert (labels[~seen] == 255).all()
    assert (out[~seen] == 0).all()
    np.testing.assert_array_equal(labels[seen], mask.ravel())


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("zoom", [0.37, 0.5, 1.6])
def test_invalid_pixels_never_bleed(dtype, zoom):
    rng = np.random.default_rng(0)
    valid = rng.random((60, 60)) > 0.3
    poison = np.nan if dtype == np.float32 else np.iinfo(dtype).min if dtype != np.uint16 else 65535
    image = np.where(valid[..., None], 1000, poison).astype(dtype).repeat(5, axis=2)
    mask = np.where(valid, 3, 255).astype(np.uint8)
    out, labels, seen = augment(crop=(30, 30), scale=(zoom, zoom)).geometry(image, mask, valid, rng=rng)
    assert 0.3 < seen.mean() <= 1
    assert (np.abs(out[seen].astype(float) - 1000) < 1e-2).all()
    assert (out[~seen] == 0).all()
    assert (labels[~seen] == 255).all()


def test_area_average_when_shrinking():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 6)).astype(np.uint16)
    out, _, _ = resize_sample(image, np.zeros((64, 64), np.uint8), np.ones((64, 64), bool), size=(16, 16))
    wanted = image.reshape(16, 4, 16, 4, 6).mean(axis=(1, 3))
    assert np.abs(out - wanted).max() <= 0.5


def test_a_wide_zoom_out_sees_reach():
    assert augment("driving", crop=(30, 40), scale=(0.5, 1)).reach == (60, 80)
    assert augment("nadir", crop=(30, 40), scale=(0.5, 1)).reach == (80, 80)
    image, mask, valid = sample(80, 80)
    made = augment("nadir", crop=(30, 40), scale=(0.5, 0.5))
    assert made.geometry(image, mask, valid, rng=np.random.default_rng(0))[2].all()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.5, 2.0)])
def test_centred_window_holds_the_pixel(scale):
    mask = np.zeros((90, 90), np.uint8)
    made = augment("nadir", crop=(20, 30), scale=scale)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        row, col = (int(v) for v in rng.integers(0, 90, 2))
        marked = mask.copy()
        marked[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = 1
        _, labels, seen = made.geometry(
            marked[..., None], marked, np.ones(mask.shape, bool), rng=rng, centre=(row, col)
        )
        assert (labels == 1).any()
        assert seen.all()


def test_erase_makes_a_rectangle_invalid_and_leaves_the_source_alone():
    image, mask, valid = sample(24, 32)
    image += 1
    before = image.copy()
    made = augment("none", erase=1.0)
    out, labels, seen = made.geometry(image, mask, valid, rng=np.random.default_rng(0))
    gone = np.argwhere(~seen)
    (top, left), (bottom, right) = gone.min(axis=0), gone.max(axis=0) + 1
    assert (bottom - top) * (right - left) == len(gone)
    assert 0.01 <= len(gone) / seen.size <= 0.13
    assert (labels[~seen] == 255).all()
    assert (out[~seen] == 0).all()
    assert (labels[seen] == mask[seen]).all()
    np.testing.assert_array_equal(image, before)
    assert valid.all()


@pytest.mark.parametrize("bands", [1, 3, 12])
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_photometry_stays_in_its_bounds_and_spares_invalid_pixels(bands, strength):
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (bands, 30, 40)).astype(np.float32)
    valid = rng.random((30, 40)) > 0.2
    image[:, ~valid] = 0
    made = augment(photometric=strength, blur=0.5)
    for seed in range(20):
        out = made.photometry(image, valid, rng=np.random.default_rng(seed))
        assert out.dtype == np.float32
        assert (out[:, ~valid] == 0).all()
        assert (out[:, valid] != image[:, valid]).any()
        spread = np.abs(image).max() + 0.5
        bound = strength * 1.25 + spread * ((1 + strength) * (1 + strength / 4) - 1)
        unblurred = replace(made, blur=0.0).photometry(image, valid, rng=np.random.default_rng(seed))
        assert np.abs(unblurred - image).max() <= bound


def test_photometry_switched_off_changes_nothing():
    image = np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32)
    out = augment().photometry(image, np.ones((20, 20), bool), rng=np.random.default_rng(0))
    assert out.tobytes() == image.tobytes()


def test_blur_keeps_invalid_pixels_out():
    valid = np.ones((20, 20), bool)
    valid[:, 10:] = False
    image = np.where(valid, 2.0, -50.0).astype(np.float32)[None]
    out = augment(blur=1.0).photometry(image, valid, rng=np.random.default_rng(0))
    np.testing.assert_allclose(out[:, valid], 2, atol=1e-5)
    assert (out[:, ~valid] == -50).all()


def test_all_invalid_sample():
    image, mask, valid = sample()
    made = augment(scale=(0.5, 2.0), photometric=1.0, blur=1.0)
    out, labels, seen = made.geometry(image, mask, ~valid, rng=np.random.default_rng(0))
    assert not seen.any()
    assert (labels == 255).all()
    normalised = np.zeros((3, *seen.shape), np.float32)
    assert (made.photometry(normalised, seen, rng=np.random.default_rng(0)) == 0).all()
    assert not out.any()


def test_wrong_options_are_named():
    with pytest.raises(DataError, match="did you mean 'driving'"):
        augment("drivng")
    with pytest.raises(DataError, match="scale"):
        augment(scale=(2.0, 1.0))
    with pytest.raises(DataError, match="photometric"):
        augment(photometric=1.5)


@pytest.mark.parametrize(
    ("pipeline", "scale", "erase", "crop", "expected"),
    [
        ("nadir", (1.0, 1.0), 0.5, (7, 9), 642291246),
        ("driving", (0.5, 2.0), 0.3, (12, 8), 4099234067),
        ("nadir", (0.7, 1.5), 0.0, None, 3915023208),
    ],
)
def test_a_training_is_repeated_bit_for_bit_by_later_releases(pipeline, scale, erase, crop, expected):
    """Checksums from before the drawn view became an object of its own; the next random numbers, too."""
    data = np.random.default_rng(100)
    mask, valid = data.integers(0, 5, (13, 17)).astype(np.uint8), data.random((13, 17)) > 0.1
    image = np.repeat(mask[..., None], 2, 2).astype(np.uint16) * 100
    made = Augment(pipeline, crop=crop, scale=scale, erase=erase)
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        out, labels, seen = made.geometry(image, mask, valid, rng=rng, centre=(5, 6) if seed % 2 else None)
        found = zlib.crc32(labels.tobytes() + seen.tobytes() + np.array(labels.shape).tobytes(), found)
        if scale == (1.0, 1.0):  # interpolated pixels may differ between builds of OpenCV
            found = zlib.crc32(out.tobytes(), found)
        found = zlib.crc32(rng.random(2).tobytes(), found)
    assert found == expected


@pytest.mark.parametrize("element", ["e", "r90", "r180", "r270", "v", "hvt", "h", "t"])
@pytest.mark.parametrize("zoom", [1, 2])
def test_points_go_where_the_pixels_go(element, zoom):
    """A pixel marked in the sample, and its centre: partly beyond the edge, zoomed, turned."""
    placement = Placement(
        (slice(1, 5), slice(2, 7)), (slice(2, 2 + 4 * zoom), slice(0, 5 * zoom)), (12, 16), element
    )
    for row, col in ((1, 2), (4, 6), (2, 5)):
        mask = np.zeros((6, 9), np.uint8)
        mask[row, col] = 1
        _, found, valid = placement.pixels(mask[..., None], mask, np.ones((6, 9), bool))
        assert found.shape == placement.size
        rows, cols = np.nonzero(found == 1)
        corners = placement.points(np.array([[col, row], [col + 1, row + 1]]))
        assert np.sort(corners[:, 0]).tolist() == [cols.min(), cols.max() + 1]
        assert np.sort(corners[:, 1]).tolist() == [rows.min(), rows.max() + 1]
        assert valid.sum() == 20 * zoom**2
