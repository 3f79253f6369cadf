"""Where the windows of the sliding protocols lie: sizes, positions, padding and how often each pixel is covered.

The arithmetic is that of the public PSPNet test code (hszhao/semseg, tool/test.py), so that scores can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

STRIDE_RATE = 2 / 3
"""Distance of two windows as a share of their side."""

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of the multi-scale scores that PSPNet's public results name."""


@dataclass(frozen=True)
class WindowSettings:
    """What the sliding protocols are set to.

    Attributes:
        crop_size: side of a window in px.
        base_size: the image's long side is scaled to scale x base_size px; 0 for scale x its own length.
        scales: each scale is predicted by itself, and the probabilities are averaged.
        flip: average every window's probabilities with those of its mirror image.
        stride_rate: distance of two windows as a share of crop_size.
    """

    crop_size: int
    base_size: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    stride_rate: float = STRIDE_RATE

    @property
    def stride(self) -> int:
        """Distance of two windows in px."""
        return math.ceil(self.crop_size * self.stride_rate)

    def scaled_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) that an image of this size gets, for each scale."""
        sizes = []
        for scale in self.scales:
            long_side = max(1, round(scale * (self.base_size or max(height, width))))
            if height > width:
                sizes.append((long_side, max(1, round(long_side / height * width))))
            else:
                sizes.append((max(1, round(long_side / width * height)), long_side))
        return sizes

    def passes(self, height: int, width: int) -> int:
        """How many windows, mirror images included, go through the network for an image of this size."""
        total = 0
        for sides in self.scaled_sizes(height, width):
            rows, columns = (
                len(window_starts(max(side, self.crop_size), self.crop_size, self.stride)) for side in sides
            )
            total += rows * columns
        return total * (2 if self.flip else 1)


def window_starts(length: int, crop_size: int, stride: int) -> list[int]:
    """First pixels of the windows that cover `length` px, in ascending order; the last window ends with the image.

    `length` must be crop_size or more, and stride at most crop_size.
    """
    count = -(-(length - crop_size) // stride) + 1
    return [min(index * stride, length - crop_size) for index in range(count)]


def coverage(length: int, crop_size: int, starts: Sequence[int]) -> torch.Tensor:
    """(length,) float32: how many of the windows cover each pixel."""
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + crop_size] += 1
    return counts


def resize_images(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 3, *size), bilinear without anti-aliasing, as OpenCV does it; the same where it fits."""
    if tuple(images.shape[-2:]) == size:
        return images
    images = images if images.is_floating_point() else images.float()
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def pad_images(images: torch.Tensor, side: int, colour: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Images with a border of `colour` (1, 3, 1, 1) up to `side` px, and the rows above and columns left of them.

    The smaller half of an odd border lies above and on the left.
    """
    count, channels, height, width = images.shape
    if height >= side and width >= side:
        return images, 0, 0
    top, left = max(side - height, 0) // 2, max(side - width, 0) // 2
    colour = colour.to(images.device, torch.float32)
    padded = colour.expand(count, channels, max(height, side), max(width, side)).contiguous()
    padded[:, :, top : top + height, left : left + width] = images
    return padded, top, left
