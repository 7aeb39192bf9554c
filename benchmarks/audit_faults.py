"""The audit's accuracy: 20 faults are planted in a copy of CamVid, and looked for by `visionsft audit`.

    python benchmarks/audit_faults.py [--data ../shared/data/camvid] [--run RUN] [--seed 0] [--quick]

The copy is made of symbolic links, but for what is changed. What the audit says of the untouched data is its own; of
what it says of the copy, an error or warning that is neither about a planted file nor said of the untouched data is
invented. The label of another frame is found by a model that hasn't learned it, so it needs --run: a run that was
trained on the train folder of the untouched data. Without --run it is not planted (19 faults). The bound is all
faults found and none invented; time is that of reading each file once (`bare_read_s`), which nobody can undercut.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from visionsft.loading import load_config
from visionsft.preparation.auditing import Audit, audit

CONFIG = Path(__file__).parents[1] / "configs/driving/camvid.yaml"


@dataclass(frozen=True)
class Fault:
    """A fault that is planted in one frame of a split."""

    name: str
    split: str
    check: str
    """By which it should be found."""
    plant: Callable[[Copy, str, str], str]
    """(copy, split, stem) -> the path below the root about which there should be a finding."""
    needs_run: bool = False


class Copy:
    """The data, made of links."""

    def __init__(self, source: Path, root: Path, *, step: int, rng: np.random.Generator) -> None:
        self.root = root
        self.rng = rng
        self.stems: dict[str, list[str]] = {}
        for split in ("train", "val", "test"):
            self.stems[split] = sorted(path.stem for path in (source / "images" / split).iterdir())[::step]
            for kind, suffix in (("images", "jpg"), ("labels", "png")):
                folder = root / kind / split
                folder.mkdir(parents=True)
                for stem in self.stems[split]:
                    os.symlink((source / kind / split / f"{stem}.{suffix}").resolve(), folder / f"{stem}.{suffix}")

    def image(self, split: str, stem: str) -> Path:
        return self.root / "images" / split / f"{stem}.jpg"

    def label(self, split: str, stem: str) -> Path:
        return self.root / "labels" / split / f"{stem}.png"

    def below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def replace(self, path: Path, data: bytes) -> str:
        """Other content in place of the link."""
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        return self.below(path)

    def redraw(self, split: str, stem: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
        """The frame, changed; (H, W, 3) uint8 blue green red."""
        path = self.image(split, stem)
        changed = np.clip(change(cv2.imread(str(path)).astype(np.float32)), 0, 255).astype(np.uint8)
        return self.replace(path, cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())

    def relabel(self, split: str, stem: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
        """The mask, changed; (H, W) uint8."""
        path = self.label(split, stem)
        return self.replace(path, _png(change(np.array(Image.open(path)))))

    def add(self, split: str, stem: str, image: bytes, label: Path) -> str:
        """A new frame."""
        self.replace(self.label(split, stem), label.read_bytes())
        return self.replace(self.image(split, stem), image)


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


# ------------------------------------------------------------------------------------------------------ faults


def _cut_image(copy: Copy, split: str, stem: str) -> str:
    data = copy.image(split, stem).read_bytes()
    return copy.replace(copy.image(split, stem), data[: int(len(data) * 0.6)])


def _empty_image(copy: Copy, split: str, stem: str) -> str:
    return copy.replace(copy.image(split, stem), b"")


def _cut_label(copy: Copy, split: str, stem: str) -> str:
    data = copy.label(split, stem).read_bytes()
    return copy.replace(copy.label(split, stem), data[: int(len(data) * 0.6)])


def _missing_label(copy: Copy, split: str, stem: str) -> str:
    copy.label(split, stem).unlink()
    return copy.below(copy.image(split, stem))


def _orphan_label(copy: Copy, split: str, stem: str) -> str:
    copy.image(split, stem).unlink()
    return copy.below(copy.label(split, stem))


def _small_label(copy: Copy, split: str, stem: str) -> str:
    return copy.relabel(split, stem, lambda mask: mask[::2, ::2])


def _unknown_value(copy: Copy, split: str, stem: str) -> str:
    def change(mask: np.ndarray) -> np.ndarray:
        mask[100:130, 200:260] = 37
        return mask

    return copy.relabel(split, stem, change)


def _colour_label(copy: Copy, split: str, stem: str) -> str:
    return copy.relabel(split, stem, lambda mask: np.repeat(mask[..., None] * 20, 3, axis=2))


def _foreign_label(copy: Copy, split: str, stem: str) -> str:
    """That of a frame of another drive."""
    drive = stem.split("_")[0]
    others = [other for other in copy.stems[split] if other.split("_")[0] != drive]
    other = others[int(copy.rng.integers(len(others)))]
    return copy.replace(copy.label(split, stem), copy.label(split, other).resolve().read_bytes())


def _void_label(copy: Copy, split: str, stem: str) -> str:
    return copy.relabel(split, stem, lambda mask: np.full_like(mask, 11))


def _black(copy: Copy, split: str, stem: str) -> str:
    return copy.redraw(split, stem, lambda image: copy.rng.integers(0, 4, image.shape))


def _white(copy: Copy, split: str, stem: str) -> str:
    return copy.redraw(split, stem, lambda image: image * 8 + 120)


def _twin(copy: Copy, split: str, stem: str) -> str:
    """The same file in test, as if the next frame."""
    new = f"{stem[:-1]}{'x' if stem[-1] != 'x' else 'y'}"
    return copy.add("test", new, copy.image(split, stem).read_bytes(), copy.label(split, stem))


def _lookalike(copy: Copy, split: str, stem: str) -> str:
    """In val, a bit brighter and compressed anew."""
    image = np.clip(cv2.imread(str(copy.image(split, stem))).astype(np.float32) * 1.03 + 4, 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()
    return copy.add("val", f"{stem}z", data, copy.label(split, stem))


def _grey(copy: Copy, split: str, stem: str) -> str:
    return copy.redraw(split, stem, lambda image: np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2))


def _blurred(copy: Copy, split: str, stem: str) -> str:
    return copy.redraw(split, stem, lambda image: cv2.GaussianBlur(image, None, 5.0))


def _swapped_channels(copy: Copy, split: str, stem: str) -> str:
    return copy.redraw(split, stem, lambda image: image[..., ::-1])


def _dark(copy: Copy, split: str, stem: str) -> str:
    return copy.redraw(split, stem, lambda image: image * 0.2)


def _sixteen_bits(copy: Copy, split: str, stem: str) -> str:
    path = copy.image(split, stem)
    deep = cv2.imread(str(path)).astype(np.uint16) * 257
    path.unlink()
    return copy.replace(path.with_suffix(".png"), _png(deep))


def _upside_down(copy: Copy, split: str, stem: str) -> str:
    return copy.relabel(split, stem, lambda mask: mask[::-1].copy())


FAULTS = (
    Fault("truncated image", "train", "unreadable image", _cut_image),
    Fault("empty image", "val", "unreadable image", _empty_image),
    Fault("truncated label", "train", "unreadable label", _cut_label),
    Fault("missing label", "test", "image without label", _missing_label),
    Fault("label without image", "train", "label without image", _orphan_label),
    Fault("label of half the size", "test", "label size", _small_label),
    Fault("unknown label value", "val", "unknown value", _unknown_value),
    Fault("colours in place of indices", "train", "label form", _colour_label),
    Fault("label of another frame", "test", "suspect label", _foreign_label, needs_run=True),
    Fault("label all void", "train", "nothing labelled", _void_label),
    Fault("black frame", "test", "constant image", _black),
    Fault("saturated frame", "train", "saturated image", _white),
    Fault("same file in two splits", "train", "identical across splits", _twin),
    Fault("near-duplicate in two splits", "train", "lookalike across splits", _lookalike),
    Fault("grey frame", "train", "grey image", _grey),
    Fault("blurred frame", "test", "unlike its group", _blurred),
    Fault("red and blue exchanged", "train", "channel order", _swapped_channels),
    Fault("dark frame", "val", "unlike its group", _dark),
    Fault("16-bit frame", "test", "image type", _sixteen_bits),
    Fault("label upside down", "train", "label layout", _upside_down),
)


# ------------------------------------------------------------------------------------------------------ measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/camvid"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep both audits there")
    parser.add_argument("--quick", action="store_true", help="every third frame; under 50 s without --run")
    args = parser.parse_args()
    rng, step = np.random.default_rng(args.seed), 3 if args.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder) / "audits"
        clean = Copy(args.data, Path(folder) / "clean", step=step, rng=rng)
        before = look(clean.root, args.run, out / "clean")
        copy = Copy(args.data, Path(folder) / "faulty", step=step, rng=rng)
        touched = {path.rpartition("/")[2] for path in files_of(before, clean.root)}
        planted = plant(copy, rng, avoid={name.partition(".")[0] for name in touched}, with_run=args.run is not None)
        after = look(copy.root, args.run, out / "faulty")
        print(after.table(), flush=True)
        result = compare(before, after, planted, (clean.root, copy.root))
        bare = read_bare(clean.root)
    sizes = {"frames": sum(before.samples.values()), "seconds_clean": before.seconds, "bare_read_s": round(bare, 2)}
    print(json.dumps({**result, **sizes, "seed": args.seed, "run": str(args.run), "quick": args.quick}))


def look(root: Path, run: Path | None, out: Path) -> Audit:
    config = load_config(CONFIG, [f"data.root={root}"])
    return audit(config, run=run, out=out)


def plant(
    copy: Copy, rng: np.random.Generator, *, avoid: set[str], with_run: bool
) -> list[tuple[Fault, str]]:
    """Each fault in a frame of its own, in the middle of its drive; (fault, path about which it should be found)."""
    planted, used = [], set(avoid)
    for fault in FAULTS:
        if fault.needs_run and not with_run:
            continue
        free = [stem for stem in copy.stems[fault.split] if stem not in used]
        stem = free[int(rng.integers(len(free)))]
        used.add(stem)
        planted.append((fault, fault.plant(copy, fault.split, stem)))
    return planted


def files_of(found: Audit, root: Path) -> list[str]:
    """Paths below the root of all that errors and warnings are about."""
    rows = [row for group in found.kinds if group.severity != "note" for row in group.findings]
    return [Path(path).relative_to(root).as_posix() for row in rows for path in (row.file, row.other) if path]


def keys_of(found: Audit, root: Path) -> dict[tuple[str, str], str]:
    """(check, file below the root or place) of errors and warnings, and the frame that each is about or an example."""
    rows = [row for group in found.kinds if group.severity != "note" for row in group.findings]
    return {
        (row.check, str(Path(row.file).relative_to(root)) if row.file else row.place): Path(
            row.file or row.item or ""
        ).stem
        for row in rows
    }


def compare(
    before: Audit, after: Audit, planted: list[tuple[Fault, str]], roots: tuple[Path, Path]
) -> dict[str, Any]:
    own, found = keys_of(before, roots[0]), keys_of(after, roots[1])
    missed = [fault.name for fault, path in planted if (fault.check, path) not in found]
    stems = {Path(path).stem for _, path in planted}
    # a frame that was put into another split shares its drive with that one
    invented = sorted(key for key in found.keys() - own.keys() if found[key] not in stems)
    return {
        "planted": len(planted),
        "found": len(planted) - len(missed),
        "missed": missed,
        "invented": invented,
        "said_of_the_untouched_data": sorted(own),
        "gone": sorted(own.keys() - found.keys()),
    }


def read_bare(root: Path) -> float:
    """Seconds of decoding every file, one after the other."""
    start = time.perf_counter()
    for path in sorted((root / "images").rglob("*.jpg")):
        cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    for path in sorted((root / "labels").rglob("*.png")):
        np.asarray(Image.open(path))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
