"""Training curves from a run's metrics.jsonl."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pspnet.errors import DataError

METRICS_LOG = "metrics.jsonl"
Line = list[tuple[float, float]]
"""(epoch, value), sorted by epoch; the middle of the third epoch is 2.5."""

_NAMES = {
    "train:loss": "training loss",
    "validation:mIOU": "mIoU",
    "validation:pixel_accuracy": "pixel accuracy",
    "learning_rate": "learning rate",
}
_POINTS = 400


@dataclass(frozen=True)
class Curves:
    """Lines by name, as far as logged: `training loss`, `mIoU`, `pixel accuracy`, `learning rate`."""

    path: Path
    lines: dict[str, Line]


def read_curves(path: Path) -> Curves:
    """Read a run's log. A truncated last line is ignored; DataError for any other invalid line.

    If a step was recorded twice, the later record is used.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found: dict[str, dict[int, float]] = {name: {} for name in _NAMES.values()}
    steps_per_epoch = 0.0
    for number, text in enumerate(texts, start=1):
        try:
            entry = json.loads(text)
            step, epoch = int(entry["step"]), int(entry["epoch"])
            values = {name: float(entry[key]) for key, name in _NAMES.items() if key in entry}
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts):
                break
            raise DataError(f"{path}: line {number} is not a record of a training run ({error}).") from error
        if "train:loss" in entry and epoch > 0:
            steps_per_epoch = max(steps_per_epoch, step / epoch)
        for name, value in values.items():
            if math.isfinite(value):
                found[name][step] = value
    # A run that stopped in its first epoch has no steps per epoch: use steps as x.
    scale = steps_per_epoch or 1.0
    lines = {
        name: _thinned([(step / scale, value) for step, value in sorted(points.items())])
        for name, points in found.items()
        if points
    }
    return Curves(path, lines)


def _thinned(line: Line) -> Line:
    """Return at most about _POINTS evenly spaced points, including the last one."""
    step = max(1, math.ceil(len(line) / _POINTS))
    return [*line[:-1:step], line[-1]]
