"""Sizes: what data modules share whose frames or patches are all of one size, their own or one that is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from datamodules.augment import Augment
from datamodules.datamodule import DataModule
from datamodules.errors import DataError


@dataclass(frozen=True)
class FrameCheck:
    """What a look into a frame and its mask found."""

    height: int
    width: int
    dtype: str
    problem: str | None


class SizedModule(DataModule):
    """The part of a data module whose frames all have, or are resized to, one size."""

    size: tuple[int, int] | None
    """(height, width) to which frames are resized; None: their own."""
    crop: tuple[int, int] | None
    """(height, width) of training samples; None: all of a frame."""
    frame_size: tuple[int, int]
    """(height, width) of whole frames as the model sees them."""
    chip: tuple[int, int]
    """(height, width) of training samples."""
    augment: Augment

    def _settle_size(self, checks: Mapping[str, FrameCheck]) -> dict[str, str]:
        """Sets what follows from the frames' size and number type; names the frames that differ."""
        if not checks:
            return {}
        sizes = Counter((check.height, check.width) for check in checks.values())
        dtypes = Counter(check.dtype for check in checks.values())
        (own, _), (dtype, _) = sizes.most_common(1)[0], dtypes.most_common(1)[0]
        self.frame_size = self.size or own
        self._note_squeezing(own)
        self.dtype = np.dtype(dtype)
        self.chip = self.crop or self.frame_size
        self.augment = replace(self.augment, crop=self.chip)
        problems = {}
        for path, check in checks.items():
            if self.size is None and (check.height, check.width) != own:
                problems[path] = (
                    f"{path}: {check.height} x {check.width} (height x width), "
                    f"most frames are {own[0]} x {own[1]}; `size` resizes all to one"
                )
            elif check.dtype != dtype:
                problems[path] = f"{path}: its pixels are {check.dtype}, most frames' {dtype}"
        return problems

    def _note_squeezing(self, own: tuple[int, int]) -> None:
        height, width = self.frame_size
        squeeze = own[0] * width / (own[1] * height)
        if abs(squeeze - 1) > 0.02:
            self.notes.append(
                f"frames of {own[0]} x {own[1]} (height x width) become {height} x {width}: "
                f"{squeeze:.2f} times as wide for their height"
            )

    def _check_crop(self) -> None:
        """A crop must fit into the frame."""
        (height, width), (rows, cols) = self.frame_size, self.chip
        if rows > height or cols > width:
            raise DataError(f"crop {rows} x {cols} is larger than the frames, {height} x {width}")
