"""Pictures: what a pixel's colour says, and that figures can be drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from visionsft.evaluation.pictures import (
    Example,
    PairExample,
    colourise,
    confusion_figure,
    contact_sheet,
    display,
    display_bands,
    error_map,
    overlay,
)

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def drawn(figure: Figure) -> np.ndarray:
    """The figure's pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize(
    ("bands", "chosen"),
    [
        (("blue", "green", "red", "nir"), [2, 1, 0]),
        (("R", "G", "B"), [0, 1, 2]),
        (("B1", "B2", "B3", "B4"), [0, 1, 2]),
        (("VV", "VH"), [0, 0, 0]),
        (("pan",), [0, 0, 0]),
    ],
)
def test_red_green_and_blue_are_found_by_name(bands: tuple[str, ...], chosen: list[int]) -> None:
    assert display_bands(bands) == chosen


def test_eight_bit_images_come_back_exactly() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (3, 9, 11)).astype(np.uint8)
    mean, std = np.array([120.0, 110.0, 100.0]), np.array([50.0, 60.0, 70.0])
    image = ((raw - mean[:, None, None]) / std[:, None, None]).astype(np.float32)
    shown = display(image, mean=mean, std=std, bands=("red", "green", "blue"), eight_bit=True)
    assert np.array_equal(shown, raw.transpose(1, 2, 0))


def test_other_images_are_stretched_over_their_valid_pixels() -> None:
    raw = np.linspace(2000, 3000, 400, dtype=np.float32).reshape(1, 20, 20)
    valid = np.ones((20, 20), bool)
    raw[:, :2], valid[:2] = -9999, False
    shown = display(raw, mean=[0.0], std=[1.0], bands=("pan",), eight_bit=False, valid=valid)
    assert shown.shape == (20, 20, 3)
    assert (shown[:2] == 0).all()
    assert shown[2, 0, 0] == 0
    assert shown[-1, -1, 0] == 255
    assert 120 < np.median(shown[2:]) < 135


def test_an_image_without_a_valid_pixel_is_black() -> None:
    shown = display(
        np.ones((3, 4, 4)), mean=[0] * 3, std=[1] * 3, bands="abc", eight_bit=False, valid=np.zeros((4, 4))
    )
    assert (shown == 0).all()


def test_masks_get_their_colours_and_ignored_pixels_none_of_them() -> None:
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    picture = colourise(mask, COLOURS)
    assert np.array_equal(picture[0, 0], COLOURS[0])
    assert np.array_equal(picture[1, 0], COLOURS[2])
    assert len(set(picture[1, 1].tolist())) == 1  # a grey


def test_errors_are_red_only_where_something_is_labelled() -> None:
    truth = np.array([[0, 1, 255]], np.uint8)
    picture = error_map(np.array([[0, 2, 0]], np.uint8), truth)
    right, wrong, ignored = picture[0]
    assert right.min() == right.max()
    assert wrong[0] > 150 > wrong[1]
    assert ignored.min() == ignored.max() != right.min()


def test_overlay_leaves_ignored_pixels_alone() -> None:
    photo = np.full((1, 2, 3), 100, np.uint8)
    mixed = overlay(photo, np.array([[0, 255]], np.uint8), COLOURS, alpha=0.5)
    assert mixed[0, 0].tolist() == [178, 50, 50]
    assert mixed[0, 1].tolist() == [100, 100, 100]


@pytest.mark.parametrize("count", [2, 11, 30])
def test_confusion_figures_say_every_name(count: int) -> None:
    confusion = np.diag(np.arange(count) + 5) + np.eye(count, k=1, dtype=int)
    confusion[1] = 0
    figure = confusion_figure(confusion, [f"name{k}" for k in range(count)], title="title")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"name{k}" for k in range(count)]
    assert "no pixels in truth" in [text.get_text() for text in axes.texts]


def test_a_confusion_figure_is_dark_where_many_pixels_are() -> None:
    pixels = drawn(confusion_figure(np.array([[99, 1], [1, 99]]), ["a", "b"], title="title"))
    blue = (pixels[..., 2] > 80) & (
        pixels[..., 0] < 30
    )  # the two cells of the diagonal and the colour bar's top
    assert 0.15 < blue.mean() < 0.5


def test_contact_sheet_has_four_panels_a_row_and_a_legend() -> None:
    truth = np.zeros((30, 40), np.uint8)
    truth[:5] = 255
    example = Example(
        "a/b.tif · IoU 0.5", np.zeros((30, 40, 3), np.uint8), truth, np.ones((30, 40), np.uint8)
    )
    figure = contact_sheet([example, example], names=["a", "b", "c"], colours=COLOURS, title="worst\nrule")
    assert len(figure.axes) == 8
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == ["a", "b", "c", "no label (ignored)"]
    assert drawn(figure).std() > 30


def test_a_pair_shows_both_models_and_no_error() -> None:
    black, ones = np.zeros((30, 40, 3), np.uint8), np.ones((30, 40), np.uint8)
    pair = PairExample("a.tif", black, ones, ones * 0, ones * 2)
    heads, panels = zip(*pair.panels(COLOURS), strict=True)
    assert heads == ("image", "truth", "A", "B")
    assert [tuple(panel[0, 0]) for panel in panels[1:]] == [tuple(COLOURS[k]) for k in (1, 0, 2)]
    labels = [text.get_text() for text in contact_sheet(
        [pair], names=["a", "b", "c"], colours=COLOURS, title="changed"
    ).legends[0].get_texts()]  # fmt: skip
    assert labels == ["a", "b", "c", "no label (ignored)"]
