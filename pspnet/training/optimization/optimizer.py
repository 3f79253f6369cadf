"""Optimizers and learning-rate schedules under the built-in algorithm's names."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pspnet.errors import ConfigError

# Entries of an optimizer's groups that say how it computes, and not what.
_IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")


def parameter_groups(
    model: nn.Module, learning_rate: float, head_lr_multiplier: float = 1.0, backbone: str = "backbone."
) -> list[dict[str, object]]:
    """Two groups, backbone and heads. `lr_scale` is each group's factor on the schedule's rate."""
    backbone_parameters: list[nn.Parameter] = []
    head_parameters: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (backbone_parameters if name.startswith(backbone) else head_parameters).append(parameter)
    return [
        {"params": backbone_parameters, "lr": learning_rate, "lr_scale": 1.0},
        {"params": head_parameters, "lr": learning_rate * head_lr_multiplier, "lr_scale": head_lr_multiplier},
    ]


def build_optimizer(
    name: str,
    groups: Sequence[dict[str, object]],
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    gamma1: float = 0.9,
    gamma2: float = 0.9,
) -> torch.optim.Optimizer:
    """sgd and nag use momentum and weight_decay; rmsprop gamma1 (decay of the squared gradient) and gamma2 (momentum).

    That is the built-in algorithm's division; the other optimizers take no setting but the learning rate. All but
    rmsprop update in one fused pass over memory where this PyTorch has that for the parameters' device.
    """
    kinds: dict[str, tuple[type[torch.optim.Optimizer], dict[str, object]]] = {
        # Nesterov's momentum is defined for a momentum above 0 only; at 0 both are plain gradient descent.
        "sgd": (torch.optim.SGD, {"momentum": momentum, "weight_decay": weight_decay, "nesterov": False}),
        "nag": (torch.optim.SGD, {"momentum": momentum, "weight_decay": weight_decay, "nesterov": momentum > 0}),
        "adam": (torch.optim.Adam, {}),
        "adagrad": (torch.optim.Adagrad, {}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": gamma1, "momentum": gamma2}),
    }
    if name not in kinds:
        raise ConfigError(f"optimizer = {name}: unknown; allowed are sgd, adam, adagrad, nag and rmsprop.")
    kind, settings = kinds[name]
    return _fused_if_possible(kind, [dict(group) for group in groups], {"lr": learning_rate, **settings})


def _fused_if_possible(
    kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]], settings: dict[str, object]
) -> torch.optim.Optimizer:
    build: Any = kind
    parameters = [parameter for group in groups for parameter in group["params"]]
    if _can_fuse(build, parameters, settings):
        settings = {**settings, "fused": True}
    optimizer: torch.optim.Optimizer = build(groups, **settings)
    return optimizer


def _can_fuse(build: Any, parameters: Sequence[nn.Parameter], settings: dict[str, object]) -> bool:
    """Whether this PyTorch has a fused form of the optimizer for every device and type among the parameters."""
    # From 2.3 on, as SGD's tells: earlier fused optimizers do not let a step be left out on the device.
    if not all("fused" in inspect.signature(kind).parameters for kind in (build, torch.optim.SGD)):
        return False
    for device, dtype in {(parameter.device, parameter.dtype) for parameter in parameters}:
        probe = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))
        probe.grad = torch.zeros_like(probe)
        try:
            # Some of the constructors accept what their first step then refuses.
            build([probe], fused=True, **settings).step()
        except RuntimeError:
            return False
    return True


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer updates in one pass on the device, which can also leave a step out there."""
    return all(group.get("fused") for group in optimizer.param_groups)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state; how updates are computed stays this optimizer's, whatever machine the state is from."""
    groups = []
    for saved, own in zip(state["param_groups"], optimizer.param_groups):
        # In the saved order, so that a resumed run's checkpoint is that of a run that never stopped.
        kept = {key: own.get(key, value) if key in _IMPLEMENTATIONS else value for key, value in saved.items()}
        groups.append({key: value for key, value in kept.items() if key not in _IMPLEMENTATIONS or key in own})
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # In the parameter's memory layout, which a file does not keep: with another one the update is slow.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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


class EarlyStopping:
    """The built-in algorithm's rule, over validated epochs.

    From epoch `min_epochs` on, epochs are counted that do not raise the mIoU above the best one that counted by at
    least the relative `tolerance`; after `patience` of them in a row training ends. An equal score is no gain, also
    with a tolerance of 0: a model that is stuck has to stop some time.
    """

    def __init__(self, min_epochs: int = 5, patience: int = 4, tolerance: float = 0.0) -> None:
        self.min_epochs = min_epochs
        self.patience = patience
        self.tolerance = tolerance
        self.best: float | None = None
        self.epochs_without_gain = 0

    def should_stop(self, epoch: int, score: float) -> bool:
        """Tell the mIoU of `epoch` (counted from 1); True where training should end."""
        if self.best is None or (score > self.best and score >= self.best * (1.0 + self.tolerance)):
            self.best, self.epochs_without_gain = score, 0
        elif epoch >= self.min_epochs:
            self.epochs_without_gain += 1
        return epoch >= self.min_epochs and self.epochs_without_gain >= self.patience

    def state_dict(self) -> dict[str, float | int | None]:
        return {"best": self.best, "epochs_without_gain": self.epochs_without_gain}

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        self.best = state["best"]
        self.epochs_without_gain = int(state["epochs_without_gain"] or 0)


class ExponentialMovingAverage:
    """A running average of the weights, which is what gets validated and saved; buffers follow the model's own.

    The decay is warmed up as min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(model.named_parameters())
        for name, value in model.state_dict().items():
            if name in parameters:
                self.shadow[name].lerp_(value.detach(), 1.0 - decay)
            else:
                self.shadow[name].copy_(value)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averaged weights inside this context, and its own again afterwards, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield
        finally:
            model.load_state_dict(own)
