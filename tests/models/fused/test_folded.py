"""Fused inference models against the original network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pspnet.errors import PspnetError
from pspnet.models.build import build_model
from pspnet.models.fused import folded
from pspnet.models.fused.folded import FusedConv2d, OneDnnConv2d, fold
from pspnet.models.fused.winograd import WinogradConv2d
from pspnet.models.pspnet import PSPNet


def network(**options: object) -> PSPNet:
    torch.manual_seed(0)
    model = build_model(5, width=16, **options)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def frames(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "deep", "align_corners": True},
        {"output_stride": 16},
        {"output_stride": 32, "auxiliary_head": False},
        {"output_stride": 32, "dilations": (2, 4), "contract_dilation": True},
        {"backbone": "resnet-18"},
        {"backbone": "resnet-34", "stem": "deep-narrow", "contract_dilation": True, "dilate_both": False},
    ],
)
def test_equals_the_network(options: dict[str, object]) -> None:
    model = network(**options)
    fused_models = [fold(model, winograd=winograd) for winograd in (False, True)]
    for size in ((64, 64), (71, 93), (32, 32)):
        images = frames(*size)
        with torch.no_grad():
            expected = model(images)
            for fused in fused_models:
                found = fused(images)
                assert found.shape == expected.shape
                assert found.dtype == torch.float32
                assert difference(found, expected) < 1e-4


def test_equals_the_network_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "_has_onednn", lambda weight: False)
    model = network()
    images = frames(64, 48)
    with torch.no_grad():
        assert difference(fold(model, winograd=False)(images), model(images)) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_one_portable_graph_accepts_any_size() -> None:
    model = network()
    fused = fold(model, portable=True)
    assert not any(isinstance(module, (OneDnnConv2d, WinogradConv2d)) for module in fused.modules())
    graph = torch.jit.trace(fused, frames(64, 64), check_trace=False)
    with torch.no_grad():
        for images in (frames(71, 93), frames(64, 64), frames(32, 50)[:1]):
            assert difference(fused(images), model(images)) < 1e-5
            assert difference(graph(images), model(images)) < 1e-5


@pytest.mark.skipif(not folded._has_onednn_operations(), reason="this PyTorch has no oneDNN operations")
def test_weights_are_packed_for_a_repeated_size() -> None:
    torch.manual_seed(0)
    conv = OneDnnConv2d(torch.randn(8, 4, 1, 1), torch.randn(8), (1, 1), (0, 0), (1, 1))
    small, large = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 9, 8)
    sizes = []
    for x in (small, large, large, small, large, small, small):
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias).relu())
        sizes.append(None if conv._packed is None else conv._packed[0])
    assert sizes == [None, None, *[large.shape] * 4, small.shape]


def test_bfloat16_is_close() -> None:
    model = network()
    images = frames(64, 64)
    with torch.no_grad():
        found = fold(model, torch.bfloat16)(images)
        assert found.dtype == torch.float32
        assert difference(found, model(images)) < 0.1


def test_winograd_is_used_for_many_channels_in_float32_on_cpus() -> None:
    def kinds(model: nn.Module) -> tuple[int, int]:
        modules = list(model.modules())
        return (
            sum(isinstance(module, WinogradConv2d) for module in modules),
            sum(isinstance(module, FusedConv2d) for module in modules),
        )

    model = network()  # width 16: three 3x3 convolutions of 128 channels in layer4, one of 512 in the head
    assert kinds(fold(model)) == (4, 1 + 3 * 16 + 4 - 4 + 1 + 5)
    assert kinds(fold(model, torch.bfloat16)) == (0, 1 + 3 * 16 + 4 + 1 + 5)
    model = network(
        backbone="resnet-18"
    )  # basic blocks: three convolutions from 128 channels in layer4, and the head's
    assert kinds(fold(model)) == (4, 1 + 2 * 8 + 3 - 4 + 1 + 5)


def test_network_is_unchanged() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fold(model)
    with torch.no_grad():
        first = fused(frames(64, 64))
        assert torch.equal(fused(frames(64, 64)), first)
    assert not fused.training
    assert not list(fused.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_invalid_images_are_rejected_as_by_the_network() -> None:
    fused = fold(network())
    with pytest.raises(PspnetError, match=r"images are 31x40 pixels: PSPNet needs at least 32x32"):
        fused(frames(40, 31))
    with pytest.raises(PspnetError, match=r"images are torch.int64: expected uint8"):
        fused(frames(40, 40).long())
