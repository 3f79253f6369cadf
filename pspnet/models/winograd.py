"""3x3 convolutions with fewer multiplications, for inference: Winograd's minimal filtering F(4x4, 3x3).

A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.3: a tile of 6 x 6
pixels gives 4 x 4 results with 36 multiplications a channel pair in place of 144. The transforms below use the points
0, 1, -1, 2, -2 and infinity.

The sum is the convolution's in another order with other roundings: in float32 the results differ by about 1e-5 of
their size. A dilated convolution is one over the d x d sub-grids of every d-th row and column.

Shape letters:
    N  images in the batch             C  input channels            O  output channels
    H  rows of the map                 W  columns of the map        d  dilation
    T  tiles: N * d * d * t * u        t  tile rows of a sub-grid   u  tile columns of a sub-grid
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 6
STEP = 4

_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_KERNEL = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
# The output transform gives 1 at all 16 places for a tile that is 1 here and 0 elsewhere: a bias put here is added to
# every result, at no cost.
_BIAS_PLACE = TILE + 1


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 with padding = dilation and a bias, optionally followed by an addition and ReLU.

    Args:
        weight: (O, C, 3, 3), float32 or float64.
        bias: (O,).
        dilation: distance of the kernel's taps, and the padding.
        relu: whether ReLU follows.
    """

    weight: Tensor
    bias: Tensor
    input_transform: Tensor
    output_transform: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1, relu: bool = True) -> None:
        super().__init__()
        kernel, double = torch.tensor(_KERNEL, dtype=torch.float64), torch.float64
        outputs, inputs = weight.shape[:2]
        transformed = torch.einsum("ai,ocij,bj->abco", kernel, weight.to("cpu", double), kernel)  # (6, 6, C, O)
        bias_tile = torch.zeros(TILE * TILE, 1, outputs, dtype=double)
        bias_tile[_BIAS_PLACE, 0] = bias.to("cpu", double)
        input_matrix, output_matrix = (torch.tensor(matrix, dtype=double) for matrix in (_INPUT, _OUTPUT))
        buffers = {
            "weight": transformed.reshape(TILE * TILE, inputs, outputs),  # (36, C, O)
            "bias": bias_tile,  # (36, 1, O)
            "input_transform": torch.kron(input_matrix, input_matrix),  # (36, 36)
            "output_transform": torch.kron(output_matrix, output_matrix),  # (16, 36)
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(weight.device, weight.dtype).contiguous())
        self.dilation = dilation
        self.relu = relu

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and what is added before ReLU (N, O, H, W) or None -> (N, O, H, W) in channels_last memory."""
        images, channels, height, width = x.shape
        d = self.dilation
        rows, columns = (math.ceil(side / (STEP * d)) for side in (height, width))  # t, u
        tiles = _tiles(x, d, rows, columns)  # (36, T * C)
        tiles = torch.mm(self.input_transform, tiles).view(TILE * TILE, -1, channels)  # (36, T, C)
        products = torch.baddbmm(self.bias, tiles, self.weight)  # (36, T, O)
        results = torch.mm(self.output_transform, products.flatten(1))  # (16, T * O)
        results = results.view(STEP, STEP, images, d, d, rows, columns, -1)
        y = results.permute(2, 5, 0, 3, 6, 1, 4, 7)  # (N, t, 4, d, u, 4, d, O): rows and columns in their order
        y = y.reshape(images, STEP * rows * d, STEP * columns * d, -1)[:, :height, :width]  # (N, H, W, O)
        y = y.permute(0, 3, 1, 2)  # (N, O, H, W)
        if added is not None:
            y = y + added
        return y.relu() if self.relu else y.contiguous(memory_format=torch.channels_last)


def _tiles(x: Tensor, d: int, rows: int, columns: int) -> Tensor:
    """(N, C, H, W) -> (36, T * C): the 6 x 6 pixels, each d apart, of every tile; tiles overlap by two."""
    images, channels, height, width = x.shape
    padded_height, padded_width = (STEP * rows + 2) * d, (STEP * columns + 2) * d
    pad = (0, 0, d, padded_width - width - d, d, padded_height - height - d)
    padded = F.pad(x.permute(0, 2, 3, 1), pad)  # (N, padded_height, padded_width, C)
    image, row, column, _ = padded.contiguous().stride()
    tiles = padded.contiguous().as_strided(
        (TILE, TILE, images, d, d, rows, columns, channels),
        (row * d, column * d, image, row, column, STEP * d * row, STEP * d * column, 1),
    )
    return tiles.reshape(TILE * TILE, -1)
