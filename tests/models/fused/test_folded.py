"""The inference form against the network it is made from."""

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
    ],
)
def test_equals_the_network(options: dict[str, object]) -> None:
    model = network(**options)
    forms = [fold(model, winograd=winograd) for winograd in (False, True)]
    for size in ((64, 64), (71, 93), (32, 32)):
        images = frames(*size)
        with torch.no_grad():
            expected = model(images)
            for form in forms:
                found = form(images)
                assert found.shape == expected.shape
                assert found.dtype == torch.float32
                assert difference(found, expected) < 1e-4


def test_equals_the_network_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "_has_onednn", lambda weight: False)
    model = network()
    images = frames(64, 48)
    with torch.no_grad():
        assert difference(fold(model, winograd=False)(images), model(images)) < 1e-5


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_portable_form_takes_any_size_in_one_graph() -> None:
    model = network()
    form = fold(model, portable=True)
    assert not any(isinstance(module, (OneDnnConv2d, WinogradConv2d)) for module in form.modules())
    graph = torch.jit.trace(form, frames(64, 64), check_trace=False)
    with torch.no_grad():
        for images in (frames(71, 93), frames(64, 64), frames(32, 50)[:1]):
            assert difference(form(images), model(images)) < 1e-5
            assert difference(graph(images), model(images)) < 1e-5


@pytest.mark.skipif(not folded._has_onednn_operations(), reason="this PyTorch has no oneDNN operations")
def test_weights_are_laid_out_for_a_size_that_stays() -> None:
    torch.manual_seed(0)
    conv = OneDnnConv2d(torch.randn(8, 4, 1, 1), torch.randn(8), (1, 1), (0, 0), (1, 1))
    small, large = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 9, 8)
    sizes = []
    for x in (small, large, large, small, large, small, small):
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias).relu())
        sizes.append(None if conv._packed is None else conv._packed[0])
    assert sizes == [None, None, *[large.shape] * 4, small.shape]


def test_bfloat16_is_near() -> None:
    model = network()
    images = frames(64, 64)
    with torch.no_grad():
        found = fold(model, torch.bfloat16)(images)
        assert found.dtype == torch.float32
        assert difference(found, model(images)) < 0.1


def test_winograd_takes_the_convolutions_of_many_channels_on_a_cpu_in_float32() -> None:
    def kinds(model: nn.Module) -> tuple[int, int]:
        modules = list(model.modules())
        return (
            sum(isinstance(module, WinogradConv2d) for module in modules),
            sum(isinstance(module, FusedConv2d) for module in modules),
        )

    model = network()  # width 16: layer4 has 128 channels in its three 3x3 convolutions, the head's has 512
    assert kinds(fold(model)) == (4, 1 + 3 * 16 + 4 - 4 + 1 + 5)
    assert kinds(fold(model, torch.bfloat16)) == (0, 1 + 3 * 16 + 4 + 1 + 5)


def test_the_network_stays_as_it_is() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    form = fold(model)
    with torch.no_grad():
        first = form(frames(64, 64))
        assert torch.equal(form(frames(64, 64)), first)
    assert not form.training
    assert not list(form.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wrong_images_are_refused_as_by_the_network() -> None:
    form = fold(network())
    with pytest.raises(PspnetError, match=r"images are 31x40 pixels: PSPNet takes 32x32 and larger"):
        form(frames(40, 31))
    with pytest.raises(PspnetError, match=r"images are torch.int64: expected uint8"):
        form(frames(40, 40).long())
