"""Splitting: which samples a configuration's data gives to training, validation and test, as files."""

from __future__ import annotations

from pathlib import Path

from datamodules import DataModule
from datamodules.leaks import Leak, describe, find_leaks
from datamodules.splitfiles import format_blocks, format_split
from datamodules.splits import PlaceSplit
from visionsft import build, files
from visionsft.config import Config


def split(config: Config, *, out: Path, check: bool) -> tuple[list[Path], list[str]]:
    """Write the split of a configuration's data; returns the files and lines about them.

    out: the table; blocks of a split by place go beside it. check: look into all files for leaks, too.
    """
    data = build.build_data(config)
    data.scan()
    leaks = find_leaks(data, pictures=check, labels=check)
    written = []
    for name, text in split_texts(data).items():
        path = out if name == "split.csv" else out.with_suffix(".geojson")
        files.write_text(path, text)
        written.append(path)
    sizes = ", ".join(f"{len(items)} {name}" for name, items in data.items.items())
    return written, [sizes, *(f"note: {note}" for note in data.notes), *summarise(leaks)]


def split_texts(data: DataModule) -> dict[str, str]:
    """What to write of a scanned module's split, by file name: the table, and the blocks of a split by place."""
    texts = {"split.csv": format_split(data.items, found=data.found)}
    by = getattr(data, "split", None)
    if isinstance(by, PlaceSplit):
        texts["blocks.geojson"] = format_blocks(data.items, side=by.block)
    return texts


def summarise(leaks: list[Leak]) -> list[str]:
    """A line for each pair of splits that leaks."""
    return [f"leak: {line}" for line in describe(leaks)] or ["no leaks between the splits found"]
