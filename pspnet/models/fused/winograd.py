"""3x3 convolutions with fewer multiplications, for inference: Winograd's minimal filtering F(4x4, 3x3).

A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.3: a tile of 6 x 6
pixels gives 4 x 4 results with 36 multiplications a channel pair in place of 144. The transforms below use the points
0, 1, -1, 2, -2 and infinity.

The sum is the convolution's in another order with other roundings: in float32 the results differ by about 1e-5 of
their size. A dilated convolution is one over the d x d sub-grids of every d-th row and column.

The transforms move far more bytes than they compute, so they work strip by strip, in memory that stays: a strip's tiles
fit the processor's cache, and memory that is new in every call would cost more than the products (each of its pages has
to be mapped and cleared).

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
# Bytes of a strip's tiles, about what a core's second cache holds.
_STRIP_BYTES = 2**21
# Bytes of a chunk's transformed tiles: as many as keep the products large, and no more for a large image.
_CHUNK_BYTES = 2**26


class _Strip(NamedTuple):
    """Some tile rows of one sub-grid."""

    image: int
    row: int  # of the sub-grid, below d
    column: int
    start: int  # tile rows
    stop: int


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
        outputs, inputs = weight.shape[:2]
        transforms = [torch.tensor(matrix, dtype=torch.float64) for matrix in (_KERNEL, _INPUT, _OUTPUT)]
        # Along rows and columns at once; each (P, 9), (P, P), (16, P).
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
        """(N, C, H, W), and what is added before ReLU (N, O, H, W) or None -> (N, O, H, W) in channels_last memory."""
        images, _, height, width = x.shape
        d, outputs = self.dilation, self.weight.shape[2]
        rows, columns = (math.ceil(side / (STEP * d)) for side in (height, width))  # t, u
        tiles = _tiles(x, d, rows, columns)  # (6, 6, N, d, d, t, u, C)
        result = _kept.take("result", (images, rows, STEP, d, columns, STEP, d, outputs), x)
        for chunk in self._chunks(images, rows, columns, x.element_size()):
            self._convolve(tiles, chunk, result)
        y = result.view(images, STEP * rows * d, STEP * columns * d, -1)[:, :height, :width]  # (N, H, W, O)
        y = y.permute(0, 3, 1, 2)  # (N, O, H, W)
        if added is not None:
            y = y + added
            return y.relu_() if self.relu else y
        return y.relu() if self.relu else y.clone(memory_format=torch.channels_last)

    def _chunks(self, images: int, rows: int, columns: int, item: int) -> Iterator[list[_Strip]]:
        """All strips in order, so many at a time that their transformed tiles take `_CHUNK_BYTES` or little more."""
        channels = self.weight.shape[1]
        line = TILE * TILE * columns * item  # bytes of a row of tiles for each channel
        step = max(1, _STRIP_BYTES // (line * channels))
        limit = max(1, _CHUNK_BYTES // (line * max(self.weight.shape[1:])))  # rows of tiles
        chunk: list[_Strip] = []
        lines = 0
        places = [(n, i, j) for n in range(images) for i in range(self.dilation) for j in range(self.dilation)]
        for place in places:
            for start in range(0, rows, step):
                strip = _Strip(*place, start, min(rows, start + step))
                if chunk and lines + strip.stop - strip.start > limit:
                    yield chunk
                    chunk, lines = [], 0
                chunk.append(strip)
                lines += strip.stop - strip.start
        yield chunk

    def _convolve(self, tiles: Tensor, strips: list[_Strip], result: Tensor) -> None:
        """The results of some strips, with the bias, written to their places."""
        columns, channels = tiles.shape[6:]
        outputs = self.weight.shape[2]
        lines = [strip.stop - strip.start for strip in strips]
        count = sum(lines) * columns  # T
        transformed = _kept.take("transformed", (TILE * TILE, count * channels), tiles)
        start = 0
        for strip, line in zip(strips, lines):
            image, row, column, top, bottom = strip
            part = _kept.take("part", (TILE, TILE, line, columns, channels), tiles)
            part.copy_(tiles[:, :, image, row, column, top:bottom])
            stop = start + line * columns * channels
            torch.mm(self.input_transform, part.view(TILE * TILE, -1), out=transformed[:, start:stop])
            start = stop
        products = _kept.take("products", (TILE * TILE, count, outputs), tiles)
        torch.bmm(transformed.view(TILE * TILE, count, channels), self.weight, out=products)
        results = _kept.take("results", (STEP * STEP, count * outputs), tiles)
        torch.mm(self.output_transform, products.view(TILE * TILE, -1), out=results)
        by_line = results.view(STEP, STEP, sum(lines), columns, outputs).permute(2, 0, 3, 1, 4)  # (lines, 4, u, 4, O)
        for (image, row, column, top, bottom), part in zip(strips, by_line.split(lines)):
            torch.add(part, self.bias, out=result[image, top:bottom, :, row, :, :, column])


class _Workspace(threading.local):
    """Memory that stays from call to call, for each thread its own: all convolutions of a thread use the same.

    What is larger than a chunk is not kept.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of this shape, with anything in it, of `like`'s type and on its device."""
        size = math.prod(shape)
        key = (name, like.dtype, like.device)
        kept = self.buffers.get(key)
        if kept is None or kept.numel() < size:
            # A tensor that is born in inference mode could not be written outside of it later on.
            with torch.inference_mode(False):
                kept = torch.empty(size, dtype=like.dtype, device=like.device)
            if size * like.element_size() <= _CHUNK_BYTES:
                self.buffers[key] = kept
        return kept[:size].view(shape)


_kept = _Workspace()


def _tiles(x: Tensor, d: int, rows: int, columns: int) -> Tensor:
    """(N, C, H, W) -> (6, 6, N, d, d, t, u, C): the pixels, each d apart, of every tile; tiles overlap by two.

    A view of the map with its padding, in memory that is used again in the next call.
    """
    images, channels, height, width = x.shape
    padded_height, padded_width = (STEP * rows + 2) * d, (STEP * columns + 2) * d
    padded = _kept.take("padded", (images, padded_height, padded_width, channels), x)
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
