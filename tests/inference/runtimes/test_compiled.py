"""The compile runtime: the plain network's results at odd sizes, and its error messages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pspnet.inference.runtimes import compiled, eager
from pspnet.inference.runtimes.base import Runtime, RuntimeMissingError
from pspnet.inference.runtimes.compiled import CompiledRuntime, check_compiler
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.inference.runtimes.trials import ChoiceCache, describe_machine
from pspnet.models.pspnet import PSPNet
from pspnet.models.pyramid import PSPHead
from pspnet.models.resnet import ResNet
from tests.inference.runtimes.tiny_exports import Brightest

CPU = torch.device("cpu")


def small_network() -> PSPNet:
    """One block per layer: compiling ResNet-50 takes minutes."""
    backbone = ResNet((1, 1, 1, 1), 8, "conv7", 4)
    return PSPNet(backbone, PSPHead(backbone.out_channels, 3)).eval()


def assert_right(runtime: Runtime, network: nn.Module, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    best = expected.topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1] > 1e-3 * float(expected.abs().max())).numpy()
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(runtime.masks(images)[clear], expected.argmax(dim=1).numpy()[clear])


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.mark.slow
@needs_compiler
def test_the_networks_masks_are_those_of_the_plain_network() -> None:
    network = small_network()
    assert_right(CompiledRuntime(network, CPU), network, (2, 33, 47))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.conv(images.float())
        return logits


def test_logits_and_their_check_need_no_second_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    monkeypatch.setattr(eager, "fastest_dtype", lambda device: torch.float16)
    monkeypatch.setattr(compiled, "build_inference_model", lambda network, dtype: network)
    asked: list[nn.Module] = []

    def compile(module: nn.Module, options: object) -> nn.Module:
        asked.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    network = Brightest()
    runtime = CompiledRuntime(network, CPU)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    np.testing.assert_array_equal(runtime.masks(images), images.argmax(axis=3))
    np.testing.assert_array_equal(runtime.logits(images).numpy(), images.transpose(0, 3, 1, 2).astype(np.float32))
    assert len(asked) == 1
    monkeypatch.setattr(network, "forward", lambda images: images.float() + float("inf"))
    with pytest.warns(UserWarning, match="overflow float16"):
        runtime.masks(images)
    assert (len(asked), runtime.dtype) == (2, torch.float32)


@pytest.mark.slow
@needs_compiler
def test_any_size_and_its_effect_on_auto(tmp_path: Path) -> None:
    network = Tiny().eval()
    runtime = open_runtime("compile", Source(lambda: network, CPU))
    assert runtime.name == "compile"
    cache = ChoiceCache(tmp_path / "cache", describe_machine(CPU))
    assert not cache.path.is_file()
    runtime.prepare(40, 56)
    for shape in ((1, 40, 56), (1, 33, 47), (3, 48, 35)):
        assert_right(runtime, network, shape)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(runtime.logits(images), expected, atol=1e-3, rtol=1e-4)
    # From now on compile is a candidate of `auto` for this architecture.
    auto: Any = open_runtime("auto", Source(lambda: network, CPU))
    assert auto.name == "auto"
    auto.prepare(40, 56)
    assert set(auto.choices[40, 56, 1].milliseconds) == {"eager", "compile"}
    assert open_runtime("auto", Source(lambda: nn.Conv2d(3, 3, 1), CPU)).name == "eager"


def test_a_missing_compiler_gives_an_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    name = r"clang\+\+" if sys.platform == "darwin" else r"g\+\+"
    with pytest.raises(RuntimeMissingError, match=rf"needs a C\+\+ compiler, and {name} is not installed; install it"):
        CompiledRuntime(nn.Identity(), CPU)
    monkeypatch.setenv("CXX", "/opt/own++")
    with pytest.raises(RuntimeMissingError, match=r"and /opt/own\+\+ is not installed"):
        check_compiler(CPU)
    with pytest.raises(RuntimeMissingError, match="needs a C compiler, and"):
        check_compiler(torch.device("cuda"))


def test_a_failed_compilation_gives_an_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Dynamo is not supported on Python 9\ndetails")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(RuntimeMissingError, match=r"cannot compile this network here \(Dynamo is not .* 9\); use the"):
        CompiledRuntime(nn.Conv2d(3, 3, 1), CPU)

    def fail(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("backend failed")

    monkeypatch.setattr(torch, "compile", lambda module, options: fail)
    runtime = CompiledRuntime(nn.Conv2d(3, 3, 1), CPU)
    for act in (lambda: runtime.prepare(40, 40), lambda: runtime.masks(np.zeros((1, 40, 40, 3), np.uint8))):
        with pytest.raises(RuntimeMissingError, match=r"\(backend failed\); use the runtime eager"):
            act()
