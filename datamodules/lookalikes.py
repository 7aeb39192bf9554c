"""Lookalikes: pictures that show nearly the same, by perceptual hash, and files that are the same, byte by byte.

The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"): the signs,
about their median, of 64 low frequencies of a small grey picture. Near hashes are found by multi-index hashing
(Norouzi, Punjani and Fleet 2012): 64 bits in four words, of which one differs by at most a bit where all differ
by at most seven. What it proposes is judged by the small pictures themselves.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 32
"""Of the small grey pictures."""
LIMIT = 7
"""Bits at most in which lookalikes' hashes differ; the search finds all of these, and no more are looked for."""
LIKENESS = 0.97
"""Correlation from which on two small pictures show the same."""
FLAT = 1.0
"""Standard deviation in grey levels (of 255) below which a picture shows nothing that could be compared."""
WORD = 16
"""Bits of a word by which hashes are looked up."""
BATCH = 4_000_000
"""Candidate pairs that are compared at once."""

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
"""(M, 2) indices."""


@dataclass(frozen=True, eq=False)
class Looks:
    """What many pictures look like."""

    hashes: Hashes
    """(N,)"""
    thumbnails: NDArray[np.uint8]
    """(N, SIDE, SIDE) grey, each stretched to 0..255."""
    flat: NDArray[np.bool_]
    """(N,) shows nothing: it is like no other."""

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, index: NDArray[np.int64]) -> Looks:
        """Those of some pictures."""
        return Looks(self.hashes[index], self.thumbnails[index], self.flat[index])


def look_at(pictures: Sequence[np.ndarray | None]) -> Looks:
    """pictures: (h, w) grey of any number type, small (see `shrink`), as 8 bits have them; None: unreadable."""
    count = len(pictures)
    thumbnails = np.zeros((count, SIDE, SIDE), np.uint8)
    hashes, flat = np.zeros(count, np.uint64), np.ones(count, np.bool_)
    for i, picture in enumerate(pictures):
        if picture is None:
            continue
        small = picture.astype(np.float32)
        flat[i] = small.std() < FLAT
        if not flat[i]:
            hashes[i] = _hash(small)
            low, high = small.min(), small.max()
            thumbnails[i] = np.round((small - low) / (high - low) * 255)
    return Looks(hashes, thumbnails, flat)


def shrink(picture: np.ndarray) -> np.ndarray:
    """(H, W) of any number type -> (SIDE, SIDE) float32."""
    return np.asarray(cv2.resize(picture.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def find_twins(judged: Looks, learned: Looks) -> Pairs:
    """(M, 2): an index of `judged` and that of its most similar lookalike in `learned`, where it has one."""
    (own, rows), (other, _) = _distinct(judged), _distinct(learned)
    pairs = _near_pairs(judged.hashes[own], learned.hashes[other])
    pairs = np.stack([own[pairs[:, 0]], other[pairs[:, 1]]], axis=1)
    pairs = _nearest(_alike(pairs, judged, learned), judged, learned)
    twin = dict(pairs.tolist())
    first = own[rows]  # for each picture that isn't flat, the first of its hash
    known = np.flatnonzero(~judged.flat)
    found = [(i, twin[j]) for i, j in zip(known.tolist(), first.tolist(), strict=True) if j in twin]
    return np.array(found, np.int64).reshape(-1, 2)


def find_repeats(looks: Looks) -> Pairs:
    """(M, 2): for every picture that has lookalikes before it, its own index and that of the most similar."""
    own, rows = _distinct(looks)
    pairs = own[_near_pairs(looks.hashes[own], looks.hashes[own])]
    near = _nearest(_alike(pairs[pairs[:, 0] > pairs[:, 1]], looks, looks), looks, looks)
    known = np.flatnonzero(~looks.flat)
    again = own[rows] != known
    return np.concatenate([near, np.stack([known[again], own[rows][again]], axis=1)])


def find_identical(paths: Sequence[str]) -> list[list[str]]:
    """Groups of files with the same content; only files of the same size are read. Missing files are left out."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        if os.path.isfile(path):
            sizes[os.path.getsize(path)].append(path)
    contents: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    for size, group in sizes.items():
        for path in group if len(group) > 1 else ():
            with open(path, "rb") as file:
                contents[size, hashlib.file_digest(file, "sha256").digest()].append(path)
    return [group for group in contents.values() if len(group) > 1]


def _hash(small: np.ndarray) -> np.uint64:
    """(SIDE, SIDE) float32 -> 64 bits; the lowest frequencies are left out: they are brightness and its slopes."""
    low = cv2.dct(small)[1:9, 1:9].ravel()
    return np.packbits(low > np.median(low)).view(np.uint64)[0]


def _distinct(looks: Looks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the pictures that aren't flat: the first of each hash, and for each of them the place of its hash there."""
    known = np.flatnonzero(~looks.flat)
    _, first, inverse = np.unique(looks.hashes[known], return_index=True, return_inverse=True)
    return known[first], inverse


def _near_pairs(one: Hashes, other: Hashes) -> Pairs:
    """(M, 2) indices of hashes (each distinct) that differ in at most LIMIT bits."""
    found = [np.empty((0, 2), np.int64)]
    for word in range(64 // WORD):
        keys, wanted = (_words(hashes, word) for hashes in (other, one))
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2**WORD + 1))
        for flip in (0, *(1 << bit for bit in range(WORD))):
            begin, end = starts[wanted ^ flip], starts[(wanted ^ flip) + 1]
            for rows, places in _expanded(begin, end):
                columns = order[places]
                near = np.bitwise_count(one[rows] ^ other[columns]) <= LIMIT
                found.append(np.stack([rows[near], columns[near]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _words(hashes: Hashes, word: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(WORD * word)) & np.uint64(2**WORD - 1)).astype(np.int64)


def _expanded(
    begin: NDArray[np.int64], end: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Row by row all places from begin (N,) to before end (N,), a bounded number at once."""
    counts = end - begin
    batch = np.cumsum(counts) // BATCH
    for number in np.unique(batch[counts > 0]):
        rows = np.flatnonzero((batch == number) & (counts > 0))
        each = counts[rows]
        offsets = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        yield np.repeat(rows, each), np.repeat(begin[rows], each) + offsets


def _alike(pairs: Pairs, one: Looks, other: Looks) -> Pairs:
    """The pairs whose small pictures show the same."""
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), 10_000):
        part = pairs[start : start + 10_000]
        first, second = (
            _standardised(looks.thumbnails[part[:, side]]) for side, looks in enumerate((one, other))
        )
        kept.append(part[(first * second).mean(axis=1) >= LIKENESS])
    return np.concatenate(kept)


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / flat.std(axis=1, keepdims=True))


def _nearest(pairs: Pairs, one: Looks, other: Looks) -> Pairs:
    """For each first index the pair whose hashes differ least."""
    apart = np.bitwise_count(one.hashes[pairs[:, 0]] ^ other.hashes[pairs[:, 1]])
    order = np.lexsort([pairs[:, 1], apart, pairs[:, 0]])
    _, first = np.unique(pairs[order, 0], return_index=True)
    return pairs[order[first]]
