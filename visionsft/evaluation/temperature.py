"""The temperature: what a run's logits are divided by, fitted on validation and kept in ``calibration.json``.

It belongs to one checkpoint and one set of views: with others, it is as if there were none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visionsft.errors import RunError
from visionsft.evaluation.calibration import DEFINITIONS
from visionsft.runs import Checkpoint, Run

FILE = "calibration.json"


@dataclass(frozen=True)
class Temperature:
    """What was fitted, on what, and what it changes."""

    value: float
    fitted_on: Mapping[str, Any]
    """Split, samples, pixels and seed."""
    measured: Mapping[str, Mapping[str, Any] | None]
    """Split -> negative log-likelihood and calibration errors 'before' and 'after'; None without that split."""


def store_temperature(run: Run, checkpoint: Checkpoint, temperature: Temperature) -> None:
    """Write ``calibration.json`` of the run."""
    values = {
        "temperature": temperature.value,
        "fitted_on": temperature.fitted_on,
        "measured": temperature.measured,
        "checkpoint": run.identify(checkpoint),
        "views": _views(run),
        "definition": DEFINITIONS["temperature"],
    }
    run.write_json(FILE, values)


def read_temperature(run: Run, checkpoint: Checkpoint = "best") -> Temperature | None:
    """That of the checkpoint; None if none was fitted, with a warning if one was fitted for something else."""
    path = run.path / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = Temperature(float(values["temperature"]), values["fitted_on"], values["measured"])
        owner, views = values["checkpoint"]["sha256"], values["views"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path}: can't be read ({error!r}); `visionsft calibrate` writes it anew") from error
    reason = None
    if owner != run.identify(checkpoint)["sha256"]:
        reason = f"for another checkpoint than {checkpoint}.ckpt as it is now"
    elif views != _views(run):
        reason = "with other inference views"
    if reason is not None:
        warnings.warn(f"{path}: was fitted {reason}, so it isn't used; calibrate again", stacklevel=2)
        return None
    return found


def load_temperature(run: Run, checkpoint: Checkpoint = "best") -> float:
    """What to divide a checkpoint's logits (the views' log mean probabilities) by; 1, and a warning, if none."""
    found = read_temperature(run, checkpoint)
    if found is None:
        warnings.warn(
            f"{run.path}: no temperature for {checkpoint}.ckpt, so probabilities are as the network gives "
            f"them; `visionsft calibrate {run.path}` fits one on validation",
            stacklevel=2,
        )
    return 1.0 if found is None else found.value


def _views(run: Run) -> dict[str, Any]:
    """How predictions are averaged, as JSON has it."""
    views: dict[str, Any] = run.config.model_dump(mode="json", include={"inference"})["inference"]
    return views
