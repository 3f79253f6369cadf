"""A 3x3 convolution over up-sampled grids, without up-sampling them.

The upper half of the input channels of PSPNet's head convolution are bilinear up-samplings of grids of 1x1, 2x2, 3x3
and 6x6 cells. Convolution and up-sampling are both linear, so their order can be turned round: each of the nine taps
first mixes the channels of the few cells, and fixed weights then spread the result over the map. This is the same sum
with its terms in another order, at a fraction of the multiplications and without the concatenated map.

The weights of a tap at one position are those of bilinear interpolation one row or column further, and zero where that
lies outside the map, as the convolution's padding is. They are products of a row's and a column's weight, so that
columns and rows are spread one after the other.

Shape letters:
    N  images in the batch             O  output channels of the convolution
    D  channels of one grid            b  the grid has b x b cells
    h  rows of the map                 w  columns of the map
    3  rows or columns of the convolution's kernel
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_upsampled(grids: Sequence[Tensor], weight: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """conv2d(cat([interpolate(grid, size) for grid in grids]), weight, padding=1), bilinear, in exact arithmetic.

    Args:
        grids: each (N, D, b, b); b may differ, the sum of all D is the weight's number of input channels.
        weight: (O, sum of D, 3, 3). In channels_last memory its parts are used where they lie, otherwise copied.
        size: (h, w) of the map.
        align_corners: convention of the up-sampling, as for torch.nn.functional.interpolate.

    Returns:
        (N, O, h, w) in channels_last memory.
    """
    height, width = size
    taps = weight.permute(0, 2, 3, 1)  # (O, 3, 3, sum of D)
    rows, spread = [], []
    start = 0
    for grid in grids:
        channels, bins = grid.shape[1], grid.shape[2]
        mixed = _mix(grid, taps[..., start : start + channels])  # (N, 3 * b, 3 * b, O)
        columns = shifted_interpolation(width, bins, align_corners, mixed)  # (w, 3 * b)
        spread.append(torch.matmul(columns, mixed).flatten(2))  # (N, 3 * b, w * O)
        rows.append(shifted_interpolation(height, bins, align_corners, mixed))  # (h, 3 * b)
        start += channels
    result = torch.matmul(torch.cat(rows, 1), torch.cat(spread, 1))  # (N, h, w * O)
    return result.view(result.shape[0], height, width, weight.shape[0]).permute(0, 3, 1, 2)  # (N, O, h, w)


def _mix(grid: Tensor, taps: Tensor) -> Tensor:
    """(N, D, b, b) cells and (O, 3, 3, D) weights -> (N, 3 * b, 3 * b, O): what each cell gives through each tap.

    The first 3 * b are kernel rows x grid rows, the second kernel columns x grid columns.
    """
    images, channels, bins, _ = grid.shape
    outputs = taps.shape[0]
    cells = grid.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * b * b, D)
    mixed = torch.matmul(cells, taps.reshape(-1, channels).t())  # (N * b * b, O * 9)
    mixed = mixed.view(images, bins, bins, outputs, 3, 3).permute(0, 4, 1, 5, 2, 3)  # (N, 3, b, 3, b, O)
    return mixed.reshape(images, 3 * bins, 3 * bins, outputs)


def shifted_interpolation(size: int, bins: int, align_corners: bool, like: Tensor) -> Tensor:
    """(size, 3 * bins): the weight of each cell at the position before, at and after every position of one axis.

    Of the type and on the device of `like`. Kept for the sizes last used, except while PyTorch traces the network,
    which has to see how the weights follow from the size.
    """
    if _is_traced():
        return _shifted_interpolation(size, bins, align_corners, like.dtype, like.device)
    return _cached(size, bins, align_corners, like.dtype, like.device)


def _shifted_interpolation(
    size: int, bins: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    cells = torch.eye(bins, dtype=torch.float64, device=device).unsqueeze(0)  # (1, b, b): cell, position
    plain = F.interpolate(cells, size, mode="linear", align_corners=align_corners)[0]  # (b, size)
    before, after = F.pad(plain, (1, 0))[:, :-1], F.pad(plain, (0, 1))[:, 1:]  # zero outside the map
    return torch.cat([before, plain, after]).t().to(dtype).contiguous()  # (size, 3 * b)


@lru_cache(maxsize=128)
def _cached(size: int, bins: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor that is born in inference mode could not be used in training later on.
    with torch.inference_mode(False), torch.no_grad():
        return _shifted_interpolation(size, bins, align_corners, dtype, device)


def _find_is_compiling() -> Callable[[], bool]:
    """PyTorch's own word for "torch.compile or torch.export is at work": public from 2.3 on, private in 2.1 and 2.2."""
    for place in (getattr(torch, "compiler", None), torch._utils):
        found: Callable[[], bool] | None = getattr(place, "is_compiling", None)
        if found is not None:
            return found
    return lambda: False


_is_compiling = _find_is_compiling()


def _is_traced() -> bool:
    """Whether PyTorch is recording the network, for torch.compile, torch.export, TorchScript or ONNX."""
    return _is_compiling() or torch._C._get_tracing_state() is not None
