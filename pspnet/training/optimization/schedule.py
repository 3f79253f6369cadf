"""Learning-rate schedules under the built-in algorithm's names."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch

from pspnet.errors import ConfigError


class LearningRateSchedule:
    """The learning rate of every optimizer step; a pure function of the step, so a resume needs no state.

    Args:
        name: poly (base x (1 - step / total) ^ power; PSPNet section 5.1), cosine (half a cosine down to 0),
            or step (x factor at each of the milestones).
        base_rate: learning rate after the warm-up.
        steps_per_epoch, epochs: the length of the run in optimizer steps.
        milestones: epochs at which `step` multiplies by `factor`.
        warmup_epochs: the rate rises linearly over these before the schedule is followed.
    """

    def __init__(
        self,
        name: str,
        base_rate: float,
        steps_per_epoch: int,
        epochs: int,
        power: float = 0.9,
        milestones: Sequence[int] = (),
        factor: float = 0.1,
        warmup_epochs: float = 0.0,
    ) -> None:
        if name not in ("poly", "cosine", "step"):
            raise ConfigError(f"lr_scheduler = {name}: unknown; allowed are poly, cosine and step.")
        self.name = name
        self.base_rate = base_rate
        self.total = steps_per_epoch * epochs
        self.power = power
        self.milestones = [epoch * steps_per_epoch for epoch in milestones]
        self.factor = factor
        self.warmup = round(warmup_epochs * steps_per_epoch)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0 over the whole run."""
        return self._scheduled(step) * (min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0)

    def _scheduled(self, step: int) -> float:
        if self.name == "step":
            return float(self.base_rate * self.factor ** bisect.bisect_right(self.milestones, step))
        left = max(0.0, 1.0 - step / self.total)
        if self.name == "poly":
            return float(self.base_rate * left**self.power)
        return self.base_rate * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rate of `step` on every parameter group, times the group's `lr_scale`; returns the base rate."""
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate
