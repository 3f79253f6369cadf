"""3x3 inference convolutions with Winograd's minimal filtering F(4x4, 3x3).

A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.3: a tile of 6 x 6
pixels gives 4 x 4 results with 36 instead of 144 multiplications per channel pair. The transforms below use the points
0, 1, -1, 2, -2 and infinity.

Sums run in another order, so float32 results differ by a relative error of about 1e-5. A dilated convolution runs over
the d x d sub-grids of every d-th row and column.

The transforms are limited by memory bandwidth, so they work strip by strip in a reused workspace: the tiles of a strip
fit the processor's cache, and newly allocated memory would cost more than the products, because each of its pages has
to be mapped and cleared.

Shape letters:
    N  images in the batch             C  input channels            O  output channels
    H  rows of the map                 W  columns of the map        d  dilation
    T  tiles of a chunk                t  tile rows of a sub-grid   u  tile columns of a sub-grid
    P  pixels of a tile: 36
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
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
# Bytes of a strip's tiles, about the size of a core's L2 cache.
_STRIP_BYTES = 2**21
# Bytes of a chunk's transformed tiles: enough for large products, and a bound for large images.
_CHUNK_BYTES = 2**26


class _Strip(NamedTuple):
    """A range of tile rows of one sub-grid."""

    image: int
    row: int  # of the sub-grid, 0 <= row < d
    column: int
    start: int  # first tile row
    stop: int


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 with padding = dilation and a bias, optionally followed by an addition and ReLU.

    Args:
        weight: (O, C, 3, 3), float32 or float64.
        bias: (O,).
        dilation: distance of the kernel's taps; also the padding.
        relu: whether to apply ReLU.
    """

    weight: Tensor
    bias: Tensor
    input_transform: Tensor
    output_transform: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1, relu: bool = True) -> None:
        super().__init__()
        outputs, inputs = weight.shape[:2]
        transforms = [torch.tensor(matrix, dtype=torch.float64) for matrix in (_KERNEL, _INPUT, _OUTPUT)]
        # Row and column transforms combined: (P, 9), (P, P), (16, P).
        kernel, input_transform, output_transform = (torch.kron(matrix, matrix) for matrix in transforms)
        taps = weight.permute(2, 3, 1, 0).reshape(9, -1)  # (9, C * O)
        transformed = torch.mm(kernel.to(weight.device, weight.dtype), taps)  # (P, C * O)
        buffers = {
            "weight": transformed.view(TILE * TILE, inputs, outputs),
            "bias": bias,  # (O,)
            "input_transform": input_transform,
            "output_transform": output_transform,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(weight.device, weight.dtype).contiguous())
        self.dilation = dilation
        self.relu = relu

    @torch.no_grad()
    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, O, H, W) in channels_last memory, plus `added` (N, O, H, W) before ReLU."""
        images, _, height, width = x.shape
        d, outputs = self.dilation, self.weight.shape[2]
        rows, columns = (math.ceil(side / (STEP * d)) for side in (height, width))  # t, u
        tiles = _tiles(x, d, rows, columns)  # (6, 6, N, d, d, t, u, C)
        result = _workspace.get("result", (images, rows, STEP, d, columns, STEP, d, outputs), x)
        for chunk in self._chunks(images, rows, columns, x.element_size()):
            self._convolve(tiles, chunk, result)
        y = result.view(images, STEP * rows * d, STEP * columns * d, -1)[:, :height, :width]  # (N, H, W, O)
        y = y.permute(0, 3, 1, 2)  # (N, O, H, W)
        if added is not None:
            y = y + added
            return y.relu_() if self.relu else y
        return y.relu() if self.relu else y.clone(memory_format=torch.channels_last)

    def _chunks(self, images: int, rows: int, columns: int, item: int) -> Iterator[list[_Strip]]:
        """Yield all strips in order, in chunks whose transformed tiles take about `_CHUNK_BYTES`."""
        channels = self.weight.shape[1]
        line = TILE * TILE * columns * item  # bytes of a tile row per channel
        step = max(1, _STRIP_BYTES // (line * channels))
        limit = max(1, _CHUNK_BYTES // (line * max(self.weight.shape[1:])))  # tile rows
        chunk: list[_Strip] = []
        lines = 0
        sub_grids = [(n, i, j) for n in range(images) for i in range(self.dilation) for j in range(self.dilation)]
        for sub_grid in sub_grids:
            for start in range(0, rows, step):
                strip = _Strip(*sub_grid, start, min(rows, start + step))
                if chunk and lines + strip.stop - strip.start > limit:
                    yield chunk
                    chunk, lines = [], 0
                chunk.append(strip)
                lines += strip.stop - strip.start
        yield chunk

    def _convolve(self, tiles: Tensor, strips: list[_Strip], result: Tensor) -> None:
        """Write the results of the strips, bias included, into `result`."""
        columns, channels = tiles.shape[6:]
        outputs = self.weight.shape[2]
        lines = [strip.stop - strip.start for strip in strips]
        count = sum(lines) * columns  # T
        transformed = _workspace.get("transformed", (TILE * TILE, count * channels), tiles)
        start = 0
        for strip, line in zip(strips, lines):
            image, row, column, top, bottom = strip
            part = _workspace.get("part", (TILE, TILE, line, columns, channels), tiles)
            part.copy_(tiles[:, :, image, row, column, top:bottom])
            stop = start + line * columns * channels
            torch.mm(self.input_transform, part.view(TILE * TILE, -1), out=transformed[:, start:stop])
            start = stop
        products = _workspace.get("products", (TILE * TILE, count, outputs), tiles)
        torch.bmm(transformed.view(TILE * TILE, count, channels), self.weight, out=products)
        results = _workspace.get("results", (STEP * STEP, count * outputs), tiles)
        torch.mm(self.output_transform, products.view(TILE * TILE, -1), out=results)
        by_line = results.view(STEP, STEP, sum(lines), columns, outputs).permute(2, 0, 3, 1, 4)  # (lines, 4, u, 4, O)
        for (image, row, column, top, bottom), part in zip(strips, by_line.split(lines)):
            torch.add(part, self.bias, out=result[image, top:bottom, :, row, :, :, column])


class _Workspace(threading.local):
    """Reused buffers, shared by all convolutions of a thread. Buffers larger than a chunk are not kept."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor of this shape with the dtype and device of `like`."""
        size = math.prod(shape)
        key = (name, like.dtype, like.device)
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < size:
            # Tensors created in inference mode cannot be written outside of it.
            with torch.inference_mode(False):
                buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            if size * like.element_size() <= _CHUNK_BYTES:
                self.buffers[key] = buffer
        return buffer[:size].view(shape)


_workspace = _Workspace()


def _tiles(x: Tensor, d: int, rows: int, columns: int) -> Tensor:
    """(N, C, H, W) -> (6, 6, N, d, d, t, u, C): the pixels of every tile, d apart; tiles overlap by two.

    Returns a view of the padded map in the workspace; the next call overwrites it.
    """
    images, channels, height, width = x.shape
    padded_height, padded_width = (STEP * rows + 2) * d, (STEP * columns + 2) * d
    padded = _workspace.get("padded", (images, padded_height, padded_width, channels), x)
    padded[:, :d].zero_()
    padded[:, d + height :].zero_()
    padded[:, d : d + height, :d].zero_()
    padded[:, d : d + height, d + width :].zero_()
    padded[:, d : d + height, d : d + width].copy_(x.permute(0, 2, 3, 1))
    image, row, column, _ = padded.stride()
    return padded.as_strided(
        (TILE, TILE, images, d, d, rows, columns, channels),
        (row * d, column * d, image, row, column, STEP * d * row, STEP * d * column, 1),
    )
