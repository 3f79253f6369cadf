"""Optimizers, schedules, early stopping and the weight average, each against numbers worked out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pspnet.errors import ConfigError
from pspnet.training.optimization.optimizer import (
    EarlyStopping,
    ExponentialMovingAverage,
    LearningRateSchedule,
    build_optimizer,
    is_fused,
    load_optimizer_state,
    parameter_groups,
)


class Tiny(nn.Module):
    """Two layers under the names that parameter_groups looks at, and a batch norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.backbone(x))
        return result


def optimizer_of(name: str, **settings: float) -> torch.optim.Optimizer:
    return build_optimizer(name, parameter_groups(Tiny(), 0.01), 0.01, **settings)


# --- optimizers -------------------------------------------------------------------------------------------------------

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
def test_optimizers_get_their_settings_only(name: str, kind: type, expected: dict[str, object]) -> None:
    optimizer = optimizer_of(name, **SETTINGS)
    assert type(optimizer) is kind
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert group["lr"] == 0.01
        assert {key: group[key] for key in expected} == expected


def test_a_state_from_another_machine_keeps_this_ones_way_of_updating() -> None:
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


def test_an_optimizer_that_cannot_be_fused_is_the_plain_one() -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.complex64))  # which no fused optimizer takes
    groups: list[dict[str, object]] = [{"params": [parameter], "lr": 0.1}]
    assert not is_fused(build_optimizer("adam", groups, 0.1))
    assert not is_fused(optimizer_of("rmsprop"))


def test_nag_without_momentum_is_plain_gradient_descent() -> None:
    assert optimizer_of("nag", momentum=0.0).param_groups[0]["nesterov"] is False


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer = lion: unknown; allowed are sgd, adam, adagrad, nag and rmsprop"
    ):
        optimizer_of("lion")


def test_groups_hold_every_parameter_once_and_heads_get_the_multiplier() -> None:
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


# --- schedules --------------------------------------------------------------------------------------------------------


def test_poly_by_hand() -> None:
    schedule = LearningRateSchedule("poly", 0.01, steps_per_epoch=5, epochs=2)
    assert schedule.rate(0) == 0.01
    assert schedule.rate(5) == pytest.approx(0.01 * 0.5**0.9, rel=1e-12)
    assert schedule.rate(9) == pytest.approx(0.01 * 0.1**0.9, rel=1e-12)
    assert schedule.rate(10) == 0
    assert schedule.rate(11) == 0  # never a complex number
    assert LearningRateSchedule("poly", 0.01, 5, 2, power=2.0).rate(5) == pytest.approx(0.0025, rel=1e-12)


def test_cosine_by_hand() -> None:
    schedule = LearningRateSchedule("cosine", 0.2, steps_per_epoch=4, epochs=3)
    assert schedule.rate(0) == 0.2
    assert schedule.rate(4) == pytest.approx(0.2 * 0.75, rel=1e-12)
    assert schedule.rate(6) == pytest.approx(0.1, rel=1e-12)
    assert schedule.rate(8) == pytest.approx(0.2 * 0.25, rel=1e-12)
    assert schedule.rate(12) == pytest.approx(0, abs=1e-15)


def test_step_by_hand() -> None:
    schedule = LearningRateSchedule("step", 1.0, steps_per_epoch=10, epochs=6, milestones=(2, 4), factor=0.5)
    rates = [schedule.rate(step) for step in (0, 19, 20, 39, 40, 59)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr_scheduler = linear: unknown; allowed are poly, cosine and step"):
        LearningRateSchedule("linear", 0.1, 1, 1)


def test_warm_up_rises_linearly_to_the_schedule() -> None:
    schedule = LearningRateSchedule("step", 1.0, 10, 4, milestones=(3,), warmup_epochs=0.5)
    assert [schedule.rate(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    poly = LearningRateSchedule("poly", 0.01, 10, 4, warmup_epochs=0.5)
    without = LearningRateSchedule("poly", 0.01, 10, 4)
    assert poly.rate(1) == pytest.approx(without.rate(1) * 0.4, rel=1e-12)
    assert [poly.rate(step) for step in range(5, 40)] == [without.rate(step) for step in range(5, 40)]


def test_apply_sets_every_group() -> None:
    model = Tiny()
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.01, 10.0), 0.01)
    schedule = LearningRateSchedule("step", 0.01, 1, 4, milestones=(2,), factor=0.1)
    assert schedule.apply(optimizer, 0) == 0.01
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1], rel=1e-12)
    assert schedule.apply(optimizer, 2) == pytest.approx(0.001, rel=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.01], rel=1e-12)


# --- early stopping ---------------------------------------------------------------------------------------------------


def stop_epoch(rule: EarlyStopping, scores: list[float]) -> int | None:
    """The epoch, from 1, after which the rule ends training."""
    for epoch, score in enumerate(scores, start=1):
        if rule.should_stop(epoch, score):
            return epoch
    return None


def test_patience_counts_epochs_without_gain_in_a_row() -> None:
    scores = [0.1, 0.3, 0.2, 0.4, 0.3, 0.39, 0.38]
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=1), scores) == 3
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2), scores) == 6
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=3), scores) == 7
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=4), scores) is None


def test_epochs_before_min_epochs_neither_stop_nor_count() -> None:
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2), falling) == 3
    assert stop_epoch(EarlyStopping(min_epochs=5, patience=1), falling) == 5
    assert stop_epoch(EarlyStopping(min_epochs=5, patience=2), falling) == 6
    assert stop_epoch(EarlyStopping(min_epochs=8, patience=1), falling) is None


def test_a_gain_before_min_epochs_is_the_mark_to_beat() -> None:
    assert stop_epoch(EarlyStopping(min_epochs=3, patience=2), [0.1, 0.6, 0.5, 0.55, 0.7]) == 4


def test_tolerance_is_relative_to_the_best_that_counted() -> None:
    scores = [0.50, 0.54, 0.549, 0.56, 0.60, 0.61]
    # With 10 %: 0.54 and 0.549 are below 0.55, 0.56 is a gain, 0.60 and 0.61 are below 0.616.
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2, tolerance=0.1), scores) == 3
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=3, tolerance=0.1), scores) is None
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=3, tolerance=0.1), [*scores, 0.612]) == 7
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=1, tolerance=0.0), scores) is None


def test_an_equal_score_is_no_gain() -> None:
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2), [0.0, 0.0, 0.0, 0.0]) == 3
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2, tolerance=0.5), [0.0, 1e-9, 0.0, 0.0]) == 4


def test_the_users_own_job_cannot_stop_before_its_last_epoch() -> None:
    assert stop_epoch(EarlyStopping(min_epochs=10, patience=2), [0.5] * 10) is None


def test_early_stopping_goes_on_after_a_resume() -> None:
    first = EarlyStopping(min_epochs=1, patience=2)
    assert not first.should_stop(1, 0.5)
    assert not first.should_stop(2, 0.4)
    resumed = EarlyStopping(min_epochs=1, patience=2)
    resumed.load_state_dict(first.state_dict())
    assert resumed.should_stop(3, 0.45)
    fresh = EarlyStopping()
    fresh.load_state_dict(EarlyStopping().state_dict())
    assert fresh.best is None


# --- average of the weights -------------------------------------------------------------------------------------------


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = ExponentialMovingAverage(model, decay=0.25)
    expected = 1.0
    for step, weight in enumerate((2.0, 5.0, -1.0), start=1):
        nn.init.constant_(model.weight, weight)
        average.update(model)
        decay = min(0.25, (1 + step) / (10 + step))  # 2/11, then 0.25
        expected = decay * expected + (1 - decay) * weight
    assert float(average.shadow["weight"]) == pytest.approx(expected, rel=1e-6)
    assert average.steps == 3


def test_the_decay_warms_up() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = ExponentialMovingAverage(model, decay=0.999)
    nn.init.constant_(model.weight, 11.0)
    average.update(model)
    assert float(average.shadow["weight"]) == pytest.approx(9.0, rel=1e-6)  # 1 - 2/11 of the way


def test_buffers_follow_the_model() -> None:
    model = Tiny()
    average = ExponentialMovingAverage(model, decay=0.9)
    model(torch.randn(8, 3))
    average.update(model)
    norm = model.backbone[1]
    assert torch.equal(average.shadow["backbone.1.running_mean"], norm.running_mean)
    assert torch.equal(average.shadow["backbone.1.running_var"], norm.running_var)
    assert int(average.shadow["backbone.1.num_batches_tracked"]) == 1


def test_applied_to_swaps_and_restores_bit_for_bit() -> None:
    model = Tiny()
    average = ExponentialMovingAverage(model, decay=0.9)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) * math.pi)
    own = copy.deepcopy(model.state_dict())
    identities = [id(parameter) for parameter in model.parameters()]
    with average.applied_to(model):
        assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert identities == [id(parameter) for parameter in model.parameters()]  # the optimizer's own


def test_applied_to_restores_after_an_error_and_leaves_the_average() -> None:
    model = Tiny()
    average = ExponentialMovingAverage(model, decay=0.9)
    shadow = copy.deepcopy(average.shadow)
    with torch.no_grad():
        model.head.weight.fill_(7.0)

    def fail() -> None:
        with average.applied_to(model):
            model(torch.randn(4, 3))  # moves the batch norm's statistics
            raise RuntimeError("validation failed")

    with pytest.raises(RuntimeError, match="validation failed"):
        fail()
    assert (model.head.weight == 7.0).all()
    assert int(model.backbone[1].num_batches_tracked) == 0
    assert all(torch.equal(value, shadow[name]) for name, value in average.shadow.items())
