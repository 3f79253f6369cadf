"""Average pooling and bilinear up-sampling along one axis as matrices.

Pooling to a grid and up-sampling from it are separable and linear, so rows and columns of a map are each multiplied by
a small matrix that depends on the axis' length only. Recently used matrices are cached per dtype and device. While
PyTorch traces the network, the graph computes them from the size at run time, so an exported network takes every size.

Shape letters:
    N  images in the batch             C  channels
    h  rows of the map                 w  columns of the map
    n  rows or columns of the map      b  rows or columns of the grid
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def average_grids(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    """(N, C, h, w) -> (N, C, b, b) for each b of bins: adaptive average pooling in one pass over the map.

    PyTorch pools float16 and bfloat16, whose weights would not sum to one; a graph pools them in float32.
    """
    if is_traced():
        return _average_in_graph(x, bins)
    if x.dtype not in (torch.float32, torch.float64):
        return [F.adaptive_avg_pool2d(x, b) for b in bins]
    images, channels, height, width = x.shape
    rows = torch.cat([pooling_weights(height, b, x) for b in bins])  # (sum of b, h)
    means = torch.matmul(rows, x.permute(0, 2, 3, 1).reshape(images, height, -1))  # (N, sum of b, w * C)
    grids = []
    for part, b in zip(means.split(list(bins), dim=1), bins):
        columns = pooling_weights(width, b, x)  # (b, w)
        grid = torch.matmul(columns, part.view(images, b, width, channels))  # (N, b, b, C)
        grids.append(grid.permute(0, 3, 1, 2))  # (N, C, b, b)
    return grids


def _average_in_graph(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    """`average_grids` for contiguous (NCHW) memory, the layout of other runtimes."""
    height, width = x.shape[-2:]
    map_ = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    columns = torch.cat([pooling_weights(width, b, map_) for b in bins])  # (sum of b, w)
    means = torch.matmul(map_, columns.t())  # (N, C, h, sum of b)
    parts = zip(means.split(list(bins), dim=3), bins)
    return [torch.matmul(pooling_weights(height, b, map_), part).to(x.dtype) for part, b in parts]


def pooling_weights(size: int, bins: int, like: Tensor) -> Tensor:
    """Return the weight of each position in each cell of adaptive average pooling, (bins, size).

    Cell i averages the positions from floor(i n / b) up to ceil((i + 1) n / b), as torch.nn.AdaptiveAvgPool2d does.
    Dtype and device are those of `like`.
    """
    return _weights(_pooling_weights, size, bins, False, like)


def shifted_interpolation(size: int, bins: int, align_corners: bool, like: Tensor) -> Tensor:
    """Return the weight of each cell before, at and after every position of one axis, (size, 3 * bins).

    Zero outside the map, like the padding of a convolution. Dtype and device are those of `like`.
    """
    return _weights(_shifted_interpolation, size, bins, align_corners, like)


_Compute = Callable[[int, int, bool, torch.dtype, torch.device], Tensor]


def _weights(compute: _Compute, size: int, bins: int, align_corners: bool, like: Tensor) -> Tensor:
    if is_traced():
        return compute(size, bins, align_corners, like.dtype, like.device)
    return _cached(compute, size, bins, align_corners, like.dtype, like.device)


@lru_cache(maxsize=256)
def _cached(
    compute: _Compute, size: int, bins: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Autograd rejects tensors that were created in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        return compute(size, bins, align_corners, dtype, device)


def _pooling_weights(size: int, bins: int, _: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    cells = torch.arange(bins, device=device).unsqueeze(1)  # (b, 1)
    positions = torch.arange(size, device=device).unsqueeze(0)  # (1, n)
    first = torch.div(cells * size, bins, rounding_mode="floor")
    end = torch.div((cells + 1) * size + (bins - 1), bins, rounding_mode="floor")
    inside = ((positions >= first) & (positions < end)).to(dtype)  # (b, n)
    return inside / (end - first).to(dtype)


def _shifted_interpolation(
    size: int, bins: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Double precision, except in a graph: not every runtime resizes float64.
    precise = torch.float32 if is_traced() and dtype != torch.float64 else torch.float64
    cells = torch.eye(bins, dtype=precise, device=device).unsqueeze(0)  # (1, b, b): cell, position
    plain = F.interpolate(cells, size, mode="linear", align_corners=align_corners)[0]  # (b, n)
    before, after = F.pad(plain, (1, 0))[:, :-1], F.pad(plain, (0, 1))[:, 1:]  # zero outside the map
    return torch.cat([before, plain, after]).t().to(dtype).contiguous()  # (n, 3 * b)


def _find_is_compiling() -> Callable[[], bool]:
    """Return PyTorch's `is_compiling`, which is public from 2.3 on and private in 2.1 and 2.2."""
    for module in (getattr(torch, "compiler", None), torch._utils):
        found: Callable[[], bool] | None = getattr(module, "is_compiling", None)
        if found is not None:
            return found
    return lambda: False


_is_compiling = _find_is_compiling()


def is_traced() -> bool:
    """Return whether PyTorch traces the network, for torch.compile, torch.export, TorchScript or ONNX."""
    return _is_compiling() or torch._C._get_tracing_state() is not None
