"""Lookalikes: all near hashes are found, changed copies are recognised, different pictures are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.lookalikes import (
    LIMIT,
    SIDE,
    Looks,
    find_identical,
    find_repeats,
    find_twins,
    look_at,
    shrink,
)


def looks_with(hashes: list[int]) -> Looks:
    """Pictures that differ in nothing but their hashes."""
    thumbnail = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    count = len(hashes)
    return Looks(
        np.array(hashes, np.uint64), np.repeat(thumbnail[None], count, axis=0), np.zeros(count, np.bool_)
    )


@st.composite
def crowded_hashes(draw: st.DrawFn) -> list[int]:
    """Hashes about a few centres, so that many are near each other."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    hashes = []
    for _ in range(draw(st.integers(1, 25))):
        value = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=10)):
            value ^= 1 << bit
        hashes.append(value)
    return hashes


def apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@given(crowded_hashes(), crowded_hashes())
def test_twins_are_the_nearest_of_all(judged, learned):
    found = dict(find_twins(looks_with(judged), looks_with(learned)).tolist())
    for i, value in enumerate(judged):
        nearest = min(apart(value, other) for other in learned)
        assert (i in found) == (nearest <= LIMIT)
        if i in found:
            assert apart(value, learned[found[i]]) == nearest


@given(crowded_hashes())
def test_repeats_name_each_later_lookalike_once(hashes):
    pairs = find_repeats(looks_with(hashes)).tolist()
    assert len({i for i, _ in pairs}) == len(pairs)
    for i, j in pairs:
        assert j < i
        assert apart(hashes[i], hashes[j]) <= LIMIT
    # whoever isn't named has no lookalike before it
    named = {i for i, _ in pairs}
    for i in set(range(len(hashes))) - named:
        assert all(apart(hashes[i], hashes[j]) > LIMIT for j in range(i))


def scenery(seed: int) -> np.ndarray:
    """(240, 320, 3) uint8: smooth random colours with some edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        (x, y), (w, h) = rng.integers(0, (300, 220)), rng.integers(8, 70, 2)
        picture[y : y + h, x : x + w] = rng.uniform(0, 255, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    return shrink(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda picture: cv2.resize(picture, (160, 120), interpolation=cv2.INTER_AREA),
        lambda picture: (picture * 0.6).astype(np.uint8),
        lambda picture: (255 * (picture / 255) ** 0.7).astype(np.uint8),
        lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.5),
    ],
    ids=["jpeg", "half", "darker", "gamma", "blurred"],
)
def test_changed_copies_are_recognised_and_other_pictures_are_not(change):
    pictures = [scenery(seed) for seed in range(40)]
    twins = find_twins(
        look_at([grey(change(each)) for each in pictures[:20]]), look_at([grey(p) for p in pictures])
    )
    found = dict(twins.tolist())
    assert sum(found.get(i) == i for i in range(20)) >= 19
    assert all(i == j for i, j in found.items())


def test_pictures_that_show_nothing_are_like_no_other():
    empty = np.full((SIDE, SIDE), 7.0, np.float32)
    noise = empty + np.random.default_rng(0).normal(0, 0.2, empty.shape).astype(np.float32)
    looks = look_at([empty, empty, noise, noise, None, grey(scenery(0)), grey(scenery(0))])
    assert looks.flat.tolist() == [True] * 5 + [False] * 2
    assert find_repeats(looks).tolist() == [[6, 5]]
    assert len(find_twins(looks, look_at([empty]))) == 0
    assert len(find_twins(look_at([]), looks)) == 0
    assert len(looks) == 7


def test_many_equal_pictures_cost_no_more_than_their_number():
    """Ten thousand frames of a standing car: one hash, not fifty million pairs."""
    looks = looks_with([12345] * 10_000)
    assert len(find_repeats(looks)) == 9_999
    assert find_twins(looks, looks)[:, 1].tolist() == [0] * 10_000


def test_files_are_identical_by_content_not_by_size(tmp_path):
    paths = [tmp_path / name for name in "abcde"]
    for path, content in zip(paths, (b"one", b"two", b"one", b"longer", b"two"), strict=True):
        path.write_bytes(content)
    groups = find_identical([*map(str, paths), str(tmp_path / "missing")])
    assert sorted(sorted(path[-1] for path in group) for group in groups) == [["a", "c"], ["b", "e"]]
