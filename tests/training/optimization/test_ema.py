"""Moving average of the weights against numbers computed by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pspnet.training.optimization.ema import ExponentialMovingAverage
from tests.training.optimization.tiny_network import Tiny


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
            model(torch.randn(4, 3))  # updates the batch-norm statistics
            raise RuntimeError("validation failed")

    with pytest.raises(RuntimeError, match="validation failed"):
        fail()
    assert (model.head.weight == 7.0).all()
    assert int(model.backbone[1].num_batches_tracked) == 0
    assert all(torch.equal(value, shadow[name]) for name, value in average.shadow.items())
