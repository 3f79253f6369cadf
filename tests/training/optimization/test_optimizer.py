"""Optimizers, their settings and parameter groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pspnet.errors import ConfigError
from pspnet.training.optimization.optimizer import build_optimizer, is_fused, load_optimizer_state, parameter_groups
from tests.training.optimization.tiny_network import Tiny


def optimizer_of(name: str, **settings: float) -> torch.optim.Optimizer:
    return build_optimizer(name, parameter_groups(Tiny(), 0.01), 0.01, **settings)


SETTINGS = {"momentum": 0.8, "weight_decay": 0.003, "gamma1": 0.7, "gamma2": 0.6}


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.003, "nesterov": False}),
        ("nag", torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.003, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "weight_decay": 0, "eps": 1e-8}),
        ("adagrad", torch.optim.Adagrad, {"weight_decay": 0, "lr_decay": 0}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.7, "momentum": 0.6, "weight_decay": 0}),
    ],
)
def test_optimizers_get_only_their_settings(name: str, kind: type, expected: dict[str, object]) -> None:
    optimizer = optimizer_of(name, **SETTINGS)
    assert type(optimizer) is kind
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert group["lr"] == 0.01
        assert {key: group[key] for key in expected} == expected


def test_a_state_from_another_machine_keeps_this_implementation() -> None:
    optimizer = optimizer_of("adam")
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["lr"] = 0.5
        group.update({key: True for key in ("fused", "foreach", "capturable") if key in group})
    before = [{key: group.get(key) for key in ("fused", "foreach", "capturable")} for group in optimizer.param_groups]
    load_optimizer_state(optimizer, state)
    after = [{key: group.get(key) for key in ("fused", "foreach", "capturable")} for group in optimizer.param_groups]
    assert after == before
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert list(optimizer.state_dict()["param_groups"][0]) == list(state["param_groups"][0])


def test_without_fused_support_the_plain_optimizer_is_used() -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.complex64))  # not supported by fused optimizers
    groups: list[dict[str, object]] = [{"params": [parameter], "lr": 0.1}]
    assert not is_fused(build_optimizer("adam", groups, 0.1))
    assert not is_fused(optimizer_of("rmsprop"))


def test_nag_without_momentum_is_plain_gradient_descent() -> None:
    assert optimizer_of("nag", momentum=0.0).param_groups[0]["nesterov"] is False


def test_an_unknown_optimizer_is_rejected() -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer = lion: unknown; allowed are sgd, adam, adagrad, nag and rmsprop"
    ):
        optimizer_of("lion")


def test_groups_contain_every_parameter_once_and_heads_get_the_multiplier() -> None:
    model = Tiny()
    backbone, heads = parameter_groups(model, 0.01, head_lr_multiplier=10.0)
    assert [id(p) for p in backbone["params"]] == [id(p) for p in model.backbone.parameters()]
    assert [id(p) for p in heads["params"]] == [id(p) for p in model.head.parameters()]
    assert (backbone["lr"], backbone["lr_scale"]) == (0.01, 1.0)
    assert (heads["lr"], heads["lr_scale"]) == (0.1, 10.0)


def test_a_model_without_a_backbone_can_be_optimized() -> None:
    model = nn.Linear(2, 1)
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.1), 0.1)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)
