"""Baselines give the networks' results, and operations are those of the published form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pspnet.benchmarking import baselines
from pspnet.benchmarking.baselines import NetworkRuntime, network_flops, plain_network, settle_statistics
from pspnet.benchmarking.plain import PlainPSPHead
from pspnet.errors import PspnetError
from pspnet.models.build import build_model
from pspnet.models.resnet import zero_residual_branches

CPU = torch.device("cpu")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)


def test_masks_and_logits_are_the_networks(images: np.ndarray) -> None:
    torch.manual_seed(0)
    network = build_model(5, width=4).train()
    settle_statistics(network, images)
    runtime = NetworkRuntime("plain", plain_network(network), CPU)
    runtime.prepare(40, 50, 2)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(runtime.logits(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    masks = runtime.masks(images)
    assert (masks.shape, masks.dtype) == ((2, 40, 50), np.uint8)
    assert (masks == runtime.logits(images).argmax(1).numpy()).all()


def test_the_plain_network_is_a_copy(images: np.ndarray) -> None:
    network = build_model(3, width=4)
    plain = plain_network(network)
    assert isinstance(plain.head, PlainPSPHead)
    assert not isinstance(network.head, PlainPSPHead)
    other = nn.Conv2d(3, 2, 1)
    assert type(plain_network(other)) is nn.Conv2d
    assert plain_network(other) is not other


@pytest.mark.slow
def test_operations_grow_with_batch_and_head() -> None:
    network = build_model(5, width=8)
    one = network_flops(network, 64, 64)
    assert network_flops(network, 64, 64, 3) == 3 * one
    head = 2 * 8 * 8 * 64 * 512 * 9  # the published 3x3 convolution at this width, on a map of 8x8
    assert one > head
    assert next(network.parameters()).device == CPU


def test_a_failing_compiler_gives_an_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_network(network: nn.Module) -> object:
        def run(images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("g++ is not there\nand a long trace")

        return run

    monkeypatch.setattr(baselines.torch, "compile", compile_network)
    runtime = NetworkRuntime("plain-compile", build_model(2, width=4), CPU, compiled=True)
    with pytest.raises(PspnetError, match=r"torch.compile does not work here \(g\+\+ is not there\)"):
        runtime.prepare(32, 32)


def test_residual_branches_become_active(images: np.ndarray) -> None:
    network = build_model(3, width=4).eval()
    zero_residual_branches(network.backbone)
    settle_statistics(network, images)
    assert network.backbone.layer4[2].bn3.weight.all()


def test_statistics_are_those_of_the_images(images: np.ndarray) -> None:
    torch.manual_seed(0)
    network = build_model(3, width=4, dropout=0.0).eval()
    settle_statistics(network, images)
    norm = network.backbone.stem.bn1
    assert norm.momentum == 0.1
    assert not network.training
    with torch.no_grad():
        x = network._normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
        found = network.backbone.stem.conv1(x)
    torch.testing.assert_close(norm.running_mean, found.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
