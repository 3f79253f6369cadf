"""Pyramid pooling against explicit loops, and both heads against plain compositions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.models.pyramid import AuxiliaryHead, PSPHead, PyramidPooling, SingleValueBatchNorm2d


def pool(x: Tensor, bins: int) -> Tensor:
    """Average from floor(i * size / bins) up to ceil((i + 1) * size / bins) for each bin i."""
    height, width = x.shape[-2:]
    rows = []
    for i in range(bins):
        top, bottom = i * height // bins, math.ceil((i + 1) * height / bins)
        spans = [(j * width // bins, math.ceil((j + 1) * width / bins)) for j in range(bins)]
        rows.append(torch.stack([x[..., top:bottom, left:right].mean((-2, -1)) for left, right in spans], -1))
    return torch.stack(rows, -2)


def interpolation(size: int, bins: int, align_corners: bool) -> Tensor:
    """Return the (size, bins) matrix of bilinear up-sampling along one axis."""
    matrix = torch.zeros(size, bins, dtype=torch.float64)
    for target in range(size):
        if align_corners:
            source = target * (bins - 1) / (size - 1) if size > 1 else 0.0
        else:
            source = max((target + 0.5) * bins / size - 0.5, 0.0)
        low = min(int(source), bins - 1)
        matrix[target, low] += 1 - (source - low)
        matrix[target, min(low + 1, bins - 1)] += source - low
    return matrix


def batch_norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    mean, var, weight, bias = (v.view(1, -1, 1, 1) for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / (var + bn.eps).sqrt() * weight + bias


def randomised(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    return module.double().eval()


def reference_grids(pyramid: PyramidPooling, x: Tensor) -> list[Tensor]:
    grids = []
    for bins, branch in zip((1, 2, 3, 6), pyramid.branches, strict=True):
        mixed = torch.einsum("nchw,oc->nohw", pool(x, bins), branch.conv.weight[:, :, 0, 0])
        grids.append(batch_norm(mixed, branch.bn).clamp(min=0))
    return grids


def reference_pyramid(pyramid: PyramidPooling, x: Tensor, align_corners: bool) -> Tensor:
    height, width = x.shape[-2:]
    parts = [x]
    for grid in reference_grids(pyramid, x):
        rows, columns = (interpolation(side, grid.shape[-1], align_corners) for side in (height, width))
        parts.append(torch.einsum("hi,ncij,wj->nchw", rows, grid, columns))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("size", [(30, 30), (9, 13), (6, 6), (4, 5), (2, 3), (1, 1)])
def test_pyramid_pooling_equals_loops(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = randomised(PyramidPooling(8))
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    found = pyramid(x)
    assert pyramid.out_channels == 8
    assert [tuple(grid.shape) for grid in found] == [(2, 2, bins, bins) for bins in (1, 2, 3, 6)]
    torch.testing.assert_close(found, reference_grids(pyramid, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(30, 30), (7, 9), (4, 5), (1, 1)])
def test_main_head_equals_composition(size: tuple[int, int], align_corners: bool) -> None:
    torch.manual_seed(0)
    head = randomised(PSPHead(16, 5, align_corners))
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    features = reference_pyramid(head.pyramid, x, align_corners)
    features = batch_norm(F.conv2d(features, head.conv.weight, padding=1), head.bn).clamp(min=0)
    expected = torch.einsum("nchw,kc->nkhw", features, head.classifier.weight[:, :, 0, 0])
    expected = expected + head.classifier.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)


def test_auxiliary_head_equals_composition() -> None:
    torch.manual_seed(0)
    head = randomised(AuxiliaryHead(16, 5))
    nn.init.normal_(head.classifier.bias)
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    features = batch_norm(F.conv2d(x, head.conv.weight, padding=1), head.bn).clamp(min=0)
    expected = F.conv2d(features, head.classifier.weight, head.classifier.bias)
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)


def test_published_layout() -> None:
    main = {name: tuple(value.shape) for name, value in PSPHead(2048, 21).named_parameters()}
    auxiliary = {name: tuple(value.shape) for name, value in AuxiliaryHead(1024, 21).named_parameters()}
    for branch in range(4):
        assert main[f"pyramid.branches.{branch}.conv.weight"] == (512, 2048, 1, 1)
        assert main[f"pyramid.branches.{branch}.bn.bias"] == (512,)
        assert f"pyramid.branches.{branch}.conv.bias" not in main
    assert main["conv.weight"] == (512, 4096, 3, 3)
    assert (main["classifier.weight"], main["classifier.bias"]) == ((21, 512, 1, 1), (21,))
    assert auxiliary["conv.weight"] == (256, 1024, 3, 3)
    assert (auxiliary["classifier.weight"], auxiliary["classifier.bias"]) == ((21, 256, 1, 1), (21,))
    assert "conv.bias" not in main
    assert "conv.bias" not in auxiliary


def test_initialisation() -> None:
    torch.manual_seed(0)
    head = PSPHead(256, 21)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert torch.equal(head.classifier.bias, torch.zeros(21))
    assert head.conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert head.pyramid.branches[0].conv.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)


def test_dropout_drops_whole_channels_in_training_only() -> None:
    torch.manual_seed(0)
    head = AuxiliaryHead(64, 1, dropout=0.5)
    dropped = head.dropout(torch.ones(8, 16, 3, 3))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[..., :1, :1].expand_as(dropped))
    x = torch.randn(2, 64, 3, 3)
    head.eval()
    assert torch.equal(head(x), head(x))


def test_batch_norm_of_one_value_uses_the_running_statistics_unchanged() -> None:
    bn = SingleValueBatchNorm2d(2, eps=0.0).train()
    bn.running_mean.copy_(torch.tensor([1.0, 2.0]))
    bn.running_var.copy_(torch.tensor([4.0, 9.0]))
    before = {name: value.clone() for name, value in bn.state_dict().items()}
    x = torch.tensor([5.0, -4.0]).view(1, 2, 1, 1).requires_grad_()
    out = bn(x)
    assert out.flatten().tolist() == [2.0, -2.0]
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0.5, 1 / 3]))
    assert bn.weight.grad.flatten().tolist() == [2.0, -2.0]
    assert all(torch.equal(value, before[name]) for name, value in bn.state_dict().items())


def test_batch_norm_of_more_values_is_plain_batch_norm() -> None:
    torch.manual_seed(0)
    ours, plain = SingleValueBatchNorm2d(3).train(), nn.BatchNorm2d(3).train()
    for shape in ((2, 3, 1, 1), (1, 3, 2, 1), (4, 3, 5, 5)):
        x = torch.randn(shape)
        assert torch.equal(ours(x), plain(x))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in ours.state_dict().items())
    assert ours.num_batches_tracked.item() == 3


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_training_on_a_batch_of_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = PSPHead(32, 3, dropout=0.0).train()
    logits = head(torch.randn(1, 32, *size))
    logits.pow(2).sum().backward()
    assert torch.isfinite(logits).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    first, second = (head.pyramid.branches[i].bn.num_batches_tracked.item() for i in (0, 1))
    assert (first, second) == (0, 1)


def test_conversion_to_sync_batch_norm() -> None:
    head = PSPHead(16, 3)
    keys = list(head.state_dict())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(head)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in synced.modules())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == 5
    assert list(synced.state_dict()) == keys
