"""The label gallery: the images that a classifier was most mistaken about, with what it said of them.

::

    evaluation/<split>/gallery/
        index.json        the rule, the classes' colours, and an entry an image
        00-image.jpg
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visionsft.evaluation.gallery import save_picture, write_index
from visionsft.evaluation.pictures import Rgb

SAID = 3
"""Classes told of each image, the most probable first."""


def write_label_gallery(
    folder: Path, images: Iterable[tuple[Mapping[str, Any], Rgb]], *, rule: str
) -> None:
    """Write the pictures of images with what is said of them, the worst first; what was there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    entries = []
    for number, (facts, picture) in enumerate(images):
        file = f"{number:02}-image.jpg"
        save_picture(picture, folder / file)
        size = {"width": picture.shape[1], "height": picture.shape[0]}
        entries.append({**facts, **size, "files": {"image": file}})
    write_index(folder, {"rule": rule, "colours": {}, "samples": entries})
