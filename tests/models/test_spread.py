"""Head convolution over grids against up-sampling first: outputs and all gradients, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet.benchmarking.plain import PlainPSPHead, make_plain
from pspnet.models.build import build_model
from pspnet.models.pyramid import PSPHead
from pspnet.models.resampling import _cached, shifted_interpolation
from pspnet.models.spread import convolve_upsampled

SIZES = [(30, 30), (9, 13), (6, 6), (4, 5), (2, 3), (1, 1), (1, 7), (45, 60)]


def plain(grids: list[Tensor], weight: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    maps = [F.interpolate(grid, size, mode="bilinear", align_corners=align_corners) for grid in grids]
    return F.conv2d(torch.cat(maps, 1), weight, padding=1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_equal_the_plain_form(size: tuple[int, int], align_corners: bool) -> None:
    torch.manual_seed(0)
    grids = [torch.randn(2, 3, bins, bins, dtype=torch.float64, requires_grad=True) for bins in (1, 2, 3, 6)]
    weight = torch.randn(5, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = plain(grids, weight, size, align_corners)
    found = convolve_upsampled(grids, weight, size, align_corners)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    seed = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, [*grids, weight], seed)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [*grids, weight], seed)):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (4,), (8, 5)])
def test_grids_of_other_sizes_and_channel_counts(bins: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    grids = [torch.randn(1, 2 + index, side, side, dtype=torch.float64) for index, side in enumerate(bins)]
    weight = torch.randn(3, sum(grid.shape[1] for grid in grids), 3, 3, dtype=torch.float64)
    found = convolve_upsampled(grids, weight, (7, 5), False)
    torch.testing.assert_close(found, plain(grids, weight, (7, 5), False), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (95, 33), (32, 32)])
def test_training_step_of_the_network_equals_the_plain_form(size: tuple[int, int], align_corners: bool) -> None:
    torch.manual_seed(0)
    ours = build_model(5, width=4, dropout=0.0, align_corners=align_corners).double().train()
    published = make_plain(copy.deepcopy(ours))
    images = 255 * torch.rand(2, 3, *size, dtype=torch.float64)
    outputs = []
    for model in (ours, published):
        logits, auxiliary = model(images)
        (logits.square().mean() + auxiliary.square().mean()).backward()
        outputs.append(logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
    for (name, mine), theirs in zip(ours.named_parameters(), published.parameters()):
        assert mine.grad is not None
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )
    for mine, theirs in zip(ours.buffers(), published.buffers()):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_single_precision_and_autocast(memory_format: torch.memory_format, dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    head = PSPHead(64, 5).eval().to(memory_format=memory_format)
    published = PlainPSPHead(64, 5).eval()
    published.load_state_dict(head.state_dict())
    x = torch.randn(2, 64, 11, 9).to(memory_format=memory_format)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        found, expected = head(x), published(x)
    assert found.dtype == expected.dtype == (dtype or torch.float32)
    tolerance = 1e-5 if dtype is None else 2e-2
    scale = expected.abs().max().item()
    assert (found - expected).abs().max().item() < tolerance * scale


def test_cached_interpolation_weights_are_usable_after_inference_mode() -> None:
    _cached.cache_clear()
    head = PSPHead(16, 3, dropout=0.0).train()
    x = torch.randn(2, 16, 7, 7)
    with torch.inference_mode():
        head(x)
    cached = _cached.cache_info().currsize
    head(x).sum().backward()
    assert cached == 4  # one for each bin: rows and columns have the same size
    assert _cached.cache_info().currsize == cached
    assert head.conv.weight.grad is not None


def test_weights_sum_to_one_inside_the_map_and_are_zero_outside() -> None:
    weights = shifted_interpolation(5, 2, False, torch.empty(0, dtype=torch.float64)).view(5, 3, 2)
    sums = weights.sum(-1)
    assert sums[1:-1].tolist() == [[1.0, 1.0, 1.0]] * 3
    assert sums[0].tolist() == [0.0, 1.0, 1.0]
    assert sums[-1].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.slow
def test_compiled_head_equals_eager() -> None:
    torch.manual_seed(0)
    head = PSPHead(16, 3).eval()
    compiled = torch.compile(head, backend="eager", fullgraph=True, dynamic=False)
    for size in ((7, 9), (6, 6)):
        x = torch.randn(1, 16, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), head(x), rtol=1e-5, atol=1e-6)
