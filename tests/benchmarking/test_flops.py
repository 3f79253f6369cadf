"""Operation counts against values computed by hand."""

from __future__ import annotations

import torch
from torch import nn

from pspnet.benchmarking.flops import count_flops
from pspnet.benchmarking.plain import make_plain
from pspnet.models.build import build_model


def test_a_convolution_and_its_gradients() -> None:
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.randn(2, 3, 10, 12, requires_grad=True)
    forward = 2 * (2 * 10 * 12) * 8 * (3 * 9)
    with torch.no_grad():
        assert count_flops(lambda: convolution(images)) == forward
    assert count_flops(lambda: convolution(images).sum().backward()) == 3 * forward


def test_the_published_network_at_full_width() -> None:
    with torch.device("meta"):
        network = make_plain(build_model(21, stem="deep", auxiliary_head=False)).eval()
        images = torch.empty(1, 3, 240, 240)
    with torch.no_grad():
        flops = count_flops(lambda: network(images))
    head = 2 * 30 * 30 * 512 * 4096 * 9
    assert head < flops
    assert 79e9 < flops < 83e9  # 81 GFLOP, the head's convolution 34 of them
