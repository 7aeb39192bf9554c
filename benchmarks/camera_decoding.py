"""Camera frames: how many a second are read and resized, beside OpenCV and PIL, from generated JPEGs.

    python benchmarks/camera_decoding.py [--quick]

Each way gives the same: (height, width, 3) pixels at the training size, from 1080p and 4K pictures (4:2:0, quality
90) in the file cache, in one thread. 'ours' is `datamodules.frames.FrameReader`'s way, decoding at a smaller scale
where that is still no smaller than the training size; 'opencv' and 'pil' decode all pixels and average; 'pil_draft'
asks PIL for a smaller scale. `difference`: of ours from OpenCV's whole decoding, averaged, in 8-bit grey levels.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image

from datamodules.augment import resize_pixels
from datamodules.frames import read_fitted

PICTURES = {"1080p": (1080, 1920), "4k": (2160, 3840)}
TARGETS = ((512, 1024), (360, 640), (256, 512))

Size = tuple[int, int]
Way = Callable[[str, Size], np.ndarray]


def ours(path: str, size: Size) -> np.ndarray:
    image, valid, _ = read_fitted(path, lambda own: size)
    return resize_pixels(image, valid, size=size)[0]


def opencv(path: str, size: Size) -> np.ndarray:
    image = cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def pil(path: str, size: Size) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize(size[::-1], Image.Resampling.BOX))


def pil_draft(path: str, size: Size) -> np.ndarray:
    with Image.open(path) as picture:
        picture.draft("RGB", size[::-1])
        return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))


WAYS: dict[str, Way] = {"ours": ours, "opencv": opencv, "pil": pil, "pil_draft": pil_draft}


def draw(size: Size, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: noise of all scales, as streets have it, so that JPEG has something to do."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((*size, 3), np.float32)
    for cell in (8, 32, 128, 512):
        coarse = rng.normal(size=(size[0] // cell + 2, size[1] // cell + 2, 3)).astype(np.float32)
        picture += cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) * cell**0.4
    picture += rng.normal(size=picture.shape).astype(np.float32) * 0.5
    return np.clip(128 + 12 * picture, 0, 255).astype(np.uint8)


def measure(ways: dict[str, Way], paths: list[str], size: Size, *, rounds: int) -> dict[str, float]:
    """Frames a second, the best of `rounds`; the ways take turns, so that a busy machine slows all of them."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            for path in paths:
                way(path, size)
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(len(paths) / seconds, 1) for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few pictures; under 50 s")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    count, rounds = (2, 2) if given.quick else (8, 5)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, own in PICTURES.items():
            paths = [str(Path(folder) / f"{kind}_{seed}.jpg") for seed in range(count)]
            for seed, path in enumerate(paths):
                Image.fromarray(draw(own, seed)).save(path, quality=90)
            for size in TARGETS:
                figures = measure(WAYS, paths, size, rounds=rounds)
                apart = np.abs(ours(paths[0], size).astype(int) - opencv(paths[0], size))
                rows.append(
                    {
                        "picture": kind,
                        "size": size,
                        **figures,
                        "vs_opencv": round(figures["ours"] / figures["opencv"], 2),
                        "vs_pil": round(figures["ours"] / figures["pil"], 2),
                        "difference": {
                            "mean": round(float(apart.mean()), 2),
                            "p99": int(np.percentile(apart, 99)),
                        },
                    }
                )
                print(rows[-1], flush=True)
    versions = {"python": platform.python_version(), "opencv": cv2.__version__, "pillow": PIL.__version__}
    print(json.dumps({"frames_per_second": rows, "pictures": count, "rounds": rounds, "versions": versions}))


if __name__ == "__main__":
    main()
