"""A 3x3 convolution over up-sampled grids, without up-sampling them.

The upper half of the input channels of PSPNet's head convolution are bilinear up-samplings of grids of 1x1, 2x2, 3x3
and 6x6 cells. Convolution and up-sampling are both linear, so they commute: each of the nine taps first mixes the
channels of the few cells, and fixed weights then spread the result over the map. The sum has the same terms in another
order, with a fraction of the multiplications and without the concatenated map.

The weights of a tap at one position are those of bilinear interpolation one row or column away, and zero outside the
map, like the convolution's padding. They are separable, so columns and rows are spread one after the other.

Shape letters:
    N  images in the batch             O  output channels of the convolution
    D  channels of one grid            b  the grid has b x b cells
    h  rows of the map                 w  columns of the map
    3  rows or columns of the convolution's kernel
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pspnet.models.resampling import shifted_interpolation


def convolve_upsampled(grids: Sequence[Tensor], weight: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Compute conv2d(cat([interpolate(grid, size) for grid in grids]), weight, padding=1) with bilinear interpolation.

    Args:
        grids: each (N, D, b, b), of any b; the D sum to the input channels of the weight.
        weight: (O, sum of D, 3, 3); used without a copy in channels_last memory.
        size: (h, w) of the map.
        align_corners: as for torch.nn.functional.interpolate.

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
    """(N, D, b, b) cells and (O, 3, 3, D) weights -> (N, 3 * b, 3 * b, O): each cell through each tap.

    Axis 1 is kernel rows x grid rows, axis 2 kernel columns x grid columns.
    """
    images, channels, bins, _ = grid.shape
    outputs = taps.shape[0]
    cells = grid.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * b * b, D)
    mixed = torch.matmul(cells, taps.reshape(-1, channels).t())  # (N * b * b, O * 9)
    mixed = mixed.view(images, bins, bins, outputs, 3, 3).permute(0, 4, 1, 5, 2, 3)  # (N, 3, b, 3, b, O)
    return mixed.reshape(images, 3 * bins, 3 * bins, outputs)
