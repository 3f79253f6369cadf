"""Optimizers under the built-in algorithm's names, and their parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
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
