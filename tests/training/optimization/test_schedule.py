"""Learning-rate schedules against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from pspnet.errors import ConfigError
from pspnet.training.optimization.schedule import LearningRateSchedule


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
    backbone, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    groups = [{"params": backbone.parameters(), "lr_scale": 1.0}, {"params": head.parameters(), "lr_scale": 10.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    schedule = LearningRateSchedule("step", 0.01, 1, 4, milestones=(2,), factor=0.1)
    assert schedule.apply(optimizer, 0) == 0.01
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1], rel=1e-12)
    assert schedule.apply(optimizer, 2) == pytest.approx(0.001, rel=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.01], rel=1e-12)
