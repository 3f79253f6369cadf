"""Winograd convolutions against PyTorch's, in float64 (the algebra) and float32 (the roundings)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pspnet.models.winograd import WinogradConv2d


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


def test_float32_rounds_little() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 256, 3, 3) / 48, torch.randn(64)
    x = torch.randn(1, 256, 20, 20)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=2, dilation=2)
    found = WinogradConv2d(weight, bias, 2, relu=False)(x)
    assert (found - exact).abs().max().item() < 2e-4 * exact.abs().max().item()


def test_input_is_left_as_it_is() -> None:
    x = torch.randn(1, 4, 6, 6)
    before = x.clone()
    WinogradConv2d(torch.randn(4, 4, 3, 3), torch.zeros(4))(x)
    assert torch.equal(x, before)
