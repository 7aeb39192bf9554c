"""Label thresholds: from which probability on an image has a class, where it may have several.

Chosen class by class on validation for the highest F1, and kept in the run's ``thresholds.json``; without it the
threshold of every class is 0.5. They belong to one checkpoint.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionsft.errors import RunError
from visionsft.evaluation.label_calibration import temper
from visionsft.evaluation.metrics import ClassificationScores
from visionsft.evaluation.metrics.segmentation import number
from visionsft.evaluation.operating import FILE, describe_owner
from visionsft.runs import Checkpoint, Run

DEFAULT = 0.5
RULE = (
    "an image has every class whose probability reaches its threshold; each has the highest F1 on validation"
)


@dataclass(frozen=True)
class LabelThresholds:
    """The result of `visionsft.evaluation.choose_label_thresholds`."""

    run: str
    checkpoint: str
    values: dict[str, float]
    """By class."""
    plain: ClassificationScores
    """On validation, with 0.5 for all."""
    tuned: ClassificationScores
    file: Path

    def table(self) -> str:
        """What the command line prints."""
        width = max(len("class"), *map(len, self.values))
        lines = [f"{self.run} · checkpoint {self.checkpoint}", ""]
        lines.append(
            f"{'class':{width}}  threshold   F1 on val (0.5 -> threshold), optimistic: it was chosen there"
        )
        for old, new in zip(self.plain.per_class, self.tuned.per_class, strict=True):
            value = self.values[new.name]
            lines.append(f"{new.name:{width}}  {value:9.4f}   {number(old.f1)} -> {number(new.f1)}")
        lines.append(f"macro F1 {number(self.plain.macro_f1)} -> {number(self.tuned.macro_f1)}")
        return "\n".join([*lines, "", f"rule: {RULE}", f"written: {self.file}; evaluate and predict use it"])


def store_thresholds(
    run: Run, checkpoint: Checkpoint, values: dict[str, float], *, temperature: float = 1.0
) -> Path:
    """Write ``thresholds.json`` of the run; temperature: of the probabilities that they are of."""
    known = {"temperature": temperature, "thresholds": values}
    return run.write_json(FILE, {"rule": RULE, **known, **describe_owner(run, checkpoint)})


def read_thresholds(
    run: Run, checkpoint: Checkpoint, names: Sequence[str], *, temperature: float = 1.0
) -> NDArray[np.float64]:
    """(K,) of the checkpoint; 0.5 each if none were chosen, with a warning if they are for another one.

    They are of probabilities with this temperature, whichever they were chosen with: the decisions are the same.
    """
    path = run.path / FILE
    if not path.is_file():
        return np.full(len(names), DEFAULT)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        owner = stored["checkpoint"]["sha256"]
        values = np.array([float(stored["thresholds"][name]) for name in names])
        change = temperature / float(stored.get("temperature", 1.0))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        again = f"`visionsft thresholds {run.path}` writes it anew"
        raise RunError(f"{path}: can't be read ({error!r}); {again}") from error
    if owner != run.identify(checkpoint)["sha256"]:
        reason = f"is for another checkpoint than {checkpoint}.ckpt as it is now"
        warnings.warn(f"{path}: {reason}; thresholds of {DEFAULT} are used", stacklevel=2)
        return np.full(len(names), DEFAULT)
    return values if change == 1 else temper(values, change, several=True).astype(np.float64)
