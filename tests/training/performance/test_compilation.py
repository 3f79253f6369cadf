"""torch.compile: when it is used, and one compilation without graph breaks per run."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspnet.errors import ConfigError
from pspnet.models.pspnet import PSPNet
from pspnet.models.pyramid import AuxiliaryHead, PSPHead
from pspnet.models.resnet import ResNet
from pspnet.training.performance import compilation as compiled
from pspnet.training.performance.compilation import CompiledModel, should_compile, unsupported_reason

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
needs_compile = pytest.mark.skipif(unsupported_reason(CPU) is not None, reason="torch.compile needs PyTorch 2.1")


def small_network() -> PSPNet:
    """PSPNet with one block per layer, because compile time grows with depth."""
    torch.manual_seed(0)
    backbone = ResNet((1, 1, 1, 1), width=4)
    return PSPNet(backbone, PSPHead(128, 3, dropout=0.0), AuxiliaryHead(64, 3, dropout=0.0)).train()


def test_auto_compiles_on_gpus_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "unsupported_reason", lambda device: None)
    assert should_compile("auto", CPU) is False
    assert should_compile("auto", CUDA) is True
    assert should_compile("auto", CUDA, deterministic=True) is False
    assert should_compile(True, CPU) is True
    assert should_compile(False, CUDA) is False


def test_the_reason_against_compilation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (3, 7))
    assert should_compile("auto", CUDA) is False
    if unsupported_reason(CPU) is None:
        with pytest.raises(ConfigError, match=r"compute capability 7\.0 or higher, and this one has 3\.7\. Use --comp"):
            should_compile(True, CUDA)
    monkeypatch.setattr(torch, "__version__", "2.0.1+cu117")
    with pytest.raises(ConfigError, match=r"compile = True cannot work here: it needs PyTorch 2\.1 or newer, and this"):
        should_compile(True, CPU)


@pytest.mark.slow
@needs_compile
def test_a_run_compiles_once_without_graph_breaks() -> None:
    """Full batches, a smaller last batch, validation by the plain network, and a second epoch."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    network = small_network()
    network.upsampled_in_training = False
    model = CompiledModel(network, 2)
    # Only Dynamo is counted here; code generation is slow and needs a compiler.
    model._compiled = (torch.compile(network, dynamic=False, backend="aot_eager"),)
    for _epoch in range(2):
        for count in (2, 2, 1):
            logits, auxiliary = model(torch.zeros(count, 3, 64, 64, dtype=torch.uint8))
            (logits.sum() + auxiliary.sum()).backward()
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, 3, 40, 48, dtype=torch.uint8))
        network.train()
    assert counters["stats"]["unique_graphs"] == 1
    assert sum(counters["graph_break"].values()) == 0


@pytest.mark.slow
@needs_compile
def test_the_compiled_network_equals_the_plain_network() -> None:
    torch._dynamo.reset()
    network = small_network().double()
    other = copy.deepcopy(network)
    model = CompiledModel(other, 2)
    model._compiled = (torch.compile(other, dynamic=False, backend="aot_eager"),)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for one in (network, model):
        logits, auxiliary = one(images)
        (logits.square().mean() + auxiliary.square().mean()).backward()
    for (name, parameter), theirs in zip(network.named_parameters(), other.parameters()):
        torch.testing.assert_close(theirs.grad, parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, buffer), theirs in zip(network.named_buffers(), other.buffers()):
        torch.testing.assert_close(theirs, buffer, rtol=1e-12, atol=1e-12, msg=name)
    assert list(model.state_dict()) == [f"original.{name}" for name in network.state_dict()]


class Failing:
    """Compiled network whose compilation fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, images: Tensor) -> Any:
        raise self.error


@needs_compile
def test_a_failure_to_compile_is_an_error_only_if_compilation_is_required() -> None:
    images, messages = torch.ones(2, 1), []
    model = CompiledModel(nn.Linear(1, 1), 2, required=False, log=messages.append)
    model._compiled = (Failing(OSError("no C++ compiler\nlong trace")),)
    assert torch.equal(model(images), model.original(images))
    assert messages == [
        "Note: the network could not be compiled (OSError: no C++ compiler); training continues without compilation."
    ]
    model(images)
    assert len(messages) == 1

    model = CompiledModel(nn.Linear(1, 1), 2)
    model._compiled = (Failing(OSError("no C++ compiler")),)
    with pytest.raises(ConfigError, match=r"could not compile the network \(OSError: no C\+\+ compiler\)\. Use --comp"):
        model(images)
    model._compiled = (Failing(RuntimeError("CUDA out of memory")),)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(images)


@needs_compile
def test_a_failing_backward_compilation_is_caught_in_the_forward_pass() -> None:
    from functorch.compile import nop
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch import config

    if not hasattr(config, "force_non_lazy_backward_lowering"):
        pytest.skip("this PyTorch compiles the backward pass when it is first run")

    def refuse(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler for this")

    torch._dynamo.reset()
    layer, messages = nn.Linear(2, 1), []
    model = CompiledModel(layer, 2, required=False, log=messages.append)
    model._compiled = (torch.compile(layer, dynamic=False, backend=aot_autograd(fw_compiler=nop, bw_compiler=refuse)),)
    model(torch.ones(2, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert len(messages) == 1
    assert "no compiler for this" in messages[0]
    assert config.force_non_lazy_backward_lowering is False


@pytest.mark.slow
@needs_compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor_runs_a_training_step() -> None:
    torch._dynamo.reset()
    model = CompiledModel(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), 2)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
