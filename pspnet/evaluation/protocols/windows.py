"""Windows of the sliding protocols: sizes, positions, padding and coverage.

The arithmetic is that of the public PSPNet test code (hszhao/semseg, tool/test.py), so that scores can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

STRIDE_RATE = 2 / 3
"""Stride of the windows as a fraction of their side."""

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of PSPNet's published multi-scale scores."""


@dataclass(frozen=True)
class WindowSettings:
    """Settings of the sliding protocols.

    Attributes:
        crop_size: side of a window in px.
        base_size: the image's long side is scaled to scale x base_size px; 0 for scale x its own length.
        scales: predicted separately; their probabilities are averaged.
        flip: average every window's probabilities with those of its mirror image.
        stride_rate: stride as a fraction of crop_size.
    """

    crop_size: int
    base_size: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    stride_rate: float = STRIDE_RATE

    @property
    def stride(self) -> int:
        """Stride of the windows in px."""
        return math.ceil(self.crop_size * self.stride_rate)

    def scaled_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the scaled (height, width) of an image of this size for each scale."""
        sizes = []
        for scale in self.scales:
            long_side = max(1, round(scale * (self.base_size or max(height, width))))
            if height > width:
                sizes.append((long_side, max(1, round(long_side / height * width))))
            else:
                sizes.append((max(1, round(long_side / width * height)), long_side))
        return sizes

    def passes(self, height: int, width: int) -> int:
        """Return the number of windows, including mirror images, of an image of this size."""
        total = 0
        for sides in self.scaled_sizes(height, width):
            rows, columns = (
                len(window_starts(max(side, self.crop_size), self.crop_size, self.stride)) for side in sides
            )
            total += rows * columns
        return total * (2 if self.flip else 1)


def window_starts(length: int, crop_size: int, stride: int) -> list[int]:
    """Return the first pixels of the windows that cover `length` px, ascending; the last window ends with the image.

    `length` must be crop_size or more, and stride at most crop_size.
    """
    count = -(-(length - crop_size) // stride) + 1
    return [min(index * stride, length - crop_size) for index in range(count)]


def coverage(length: int, crop_size: int, starts: Sequence[int]) -> torch.Tensor:
    """Return (length,) float32: the number of windows that cover each pixel."""
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + crop_size] += 1
    return counts


def resize_images(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 3, *size), bilinear without anti-aliasing, like OpenCV; unchanged if the size matches."""
    if tuple(images.shape[-2:]) == size:
        return images
    images = images if images.is_floating_point() else images.float()
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def pad_images(images: torch.Tensor, side: int, colour: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Pad images with `colour` (1, 3, 1, 1) to at least `side` px; return them with the top and left border.

    The smaller half of an odd border is at the top and left.
    """
    count, channels, height, width = images.shape
    if height >= side and width >= side:
        return images, 0, 0
    top, left = max(side - height, 0) // 2, max(side - width, 0) // 2
    colour = colour.to(images.device, torch.float32)
    padded = colour.expand(count, channels, max(height, side), max(width, side)).contiguous()
    padded[:, :, top : top + height, left : left + width] = images
    return padded, top, left
