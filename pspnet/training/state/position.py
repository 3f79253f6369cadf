"""Position of a run, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field

from pspnet.evaluation.metrics import Scores


@dataclass
class Position:
    """Progress of a run. `batch` counts the finished mini-batches of `epoch` (from 1)."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    validated: bool = False


@dataclass
class Outcome:
    """Outcome of `train`: exit code 0 for a finished run, 128 + signal number for an interrupted one."""

    exit_code: int
    scores: Scores | None = None
    best_epoch: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
