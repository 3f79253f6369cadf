"""Winograd convolutions against PyTorch's in float64 (algebra) and float32 (rounding)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from pspnet.models.fused import winograd
from pspnet.models.fused.winograd import WinogradConv2d


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (30, 30), (9, 13), (3, 2), (1, 1), (1, 17)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_convolution(size: tuple[int, int], dilation: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    added = torch.randn(2, 5, *size, dtype=torch.float64)
    plain = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    found = WinogradConv2d(weight, bias, dilation, relu=False)(x)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    assert found.is_contiguous(memory_format=torch.channels_last)
    found = WinogradConv2d(weight, bias, dilation)(x, added)
    torch.testing.assert_close(found, (plain + added).relu(), rtol=1e-10, atol=1e-10)


def test_float32_rounding_error_is_small() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 256, 3, 3) / 48, torch.randn(64)
    x = torch.randn(1, 256, 20, 20)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=2, dilation=2)
    found = WinogradConv2d(weight, bias, 2, relu=False)(x)
    assert (found - exact).abs().max().item() < 2e-4 * exact.abs().max().item()


def test_input_is_unchanged() -> None:
    x = torch.randn(1, 4, 6, 6)
    before = x.clone()
    WinogradConv2d(torch.randn(4, 4, 3, 3), torch.zeros(4))(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("strip", "chunk"), [(1, 1), (1, 2**16), (2**14, 2**15)])
def test_strips_and_chunks_do_not_change_the_result(
    strip: int, chunk: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = WinogradConv2d(torch.randn(6, 4, 3, 3).double(), torch.randn(6).double(), dilation)
    x = torch.randn(2, 4, 25, 18).double()
    whole = conv(x)
    assert len(list(conv._chunks(2, 7, 5, 8))) == 1
    monkeypatch.setattr(winograd, "_STRIP_BYTES", strip)
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", chunk)
    assert len(list(conv._chunks(2, 7, 5, 8))) > 1
    torch.testing.assert_close(conv(x), whole, rtol=1e-12, atol=1e-12)


def test_workspace_keeps_buffers_up_to_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = winograd._Workspace()
    like = torch.empty(0)
    first = workspace.get("a", (10, 10), like)
    assert workspace.get("a", (5, 4), like).data_ptr() == first.data_ptr()
    assert workspace.get("b", (5, 4), like).data_ptr() != first.data_ptr()
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", 400)
    assert workspace.get("a", (101,), like).shape == (101,)
    assert workspace.buffers["a", torch.float32, like.device].numel() == 100


def test_workspace_is_thread_safe() -> None:
    torch.manual_seed(0)
    convs = [WinogradConv2d(torch.randn(8, 8, 3, 3), torch.randn(8), 1 + n % 2) for n in range(4)]
    images = [torch.randn(1, 8, 40, 40) for _ in convs]
    expected = [conv(x) for conv, x in zip(convs, images)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(20):
            found = threads.map(lambda conv, x: conv(x), convs, images)
            assert all(torch.equal(y, z) for y, z in zip(found, expected))


def test_buffers_created_in_inference_mode_work_outside_it() -> None:
    conv, x = WinogradConv2d(torch.randn(4, 4, 3, 3), torch.zeros(4)), torch.randn(1, 4, 50, 50)
    with torch.inference_mode():
        inside = conv(x)
    assert torch.equal(conv(x), inside)
