"""Windows, scaling and padding for images that are too large or too small for one forward pass.

Legend: H, W image height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pspnet.models.constants import MIN_SIZE

OVERLAP = 128
"""Overlap of two neighbouring windows in pixels, if the windows are large enough."""

_CELL = 8  # window sides are multiples of the published output stride


@dataclass(frozen=True)
class Window:
    """A window of an image and the part of it whose predictions are kept, in pixels of the image."""

    rows: slice
    columns: slice
    kept_rows: slice
    kept_columns: slice

    @property
    def kept(self) -> tuple[slice, slice]:
        """The kept part in pixels of the window."""
        top, left = self.rows.start, self.columns.start
        return (
            slice(self.kept_rows.start - top, self.kept_rows.stop - top),
            slice(self.kept_columns.start - left, self.kept_columns.stop - left),
        )


def padded_pixels(height: int, width: int) -> int:
    """Return the number of pixels of an image after `pad`."""
    return max(height, MIN_SIZE) * max(width, MIN_SIZE)


def pad(image: np.ndarray) -> np.ndarray:
    """Repeat the last row and column of an (H, W, 3) image up to the network's smallest size."""
    height, width = image.shape[:2]
    missing = ((0, max(MIN_SIZE - height, 0)), (0, max(MIN_SIZE - width, 0)), (0, 0))
    return np.pad(image, missing, mode="edge") if height < MIN_SIZE or width < MIN_SIZE else image


def windows(height: int, width: int, pass_pixels: int) -> list[Window]:
    """Return windows of one size and at most pass_pixels (padded) that cover an image.

    Each pixel is kept from one window only: the one whose centre is nearer.
    """
    side = math.isqrt(pass_pixels)
    if max(height, MIN_SIZE) <= side:
        rows, columns = height, pass_pixels // max(height, MIN_SIZE)
    elif max(width, MIN_SIZE) <= side:
        rows, columns = pass_pixels // max(width, MIN_SIZE), width
    else:
        rows = columns = side
    return [
        Window(window_rows, window_columns, kept_rows, kept_columns)
        for window_rows, kept_rows in _spans(height, rows)
        for window_columns, kept_columns in _spans(width, columns)
    ]


def _spans(length: int, size: int) -> list[tuple[slice, slice]]:
    """Return evenly spaced spans of one length <= size that cover `length`, and the kept part of each."""
    if length <= size:
        return [(slice(0, length), slice(0, length))]
    size -= size % _CELL
    overlap = min(OVERLAP, size // 4)
    count = math.ceil((length - overlap) / (size - overlap))
    needed = math.ceil((length + (count - 1) * overlap) / count)
    size = min(size, math.ceil(needed / _CELL) * _CELL)
    starts = [index * (length - size) // (count - 1) for index in range(count)]
    cuts = [0, *((start + size + following) // 2 for start, following in zip(starts, starts[1:])), length]
    return [(slice(start, start + size), slice(cuts[i], cuts[i + 1])) for i, start in enumerate(starts)]


def scaled_size(height: int, width: int, pass_pixels: int) -> tuple[int, int]:
    """Return (height, width) of the largest image of nearly this aspect ratio with at most pass_pixels, padded."""
    factor = min(1.0, math.sqrt(pass_pixels / (height * width)))
    small_height, small_width = max(1, int(height * factor)), max(1, int(width * factor))
    small_height = min(small_height, pass_pixels // max(small_width, MIN_SIZE))
    return small_height, min(small_width, pass_pixels // max(small_height, MIN_SIZE))


def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3), antialiased bilinear."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def enlarge(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., h, w) -> (..., height, width), nearest neighbour by pixel centres."""
    rows = (2 * np.arange(height) + 1) * values.shape[-2] // (2 * height)
    columns = (2 * np.arange(width) + 1) * values.shape[-1] // (2 * width)
    return values[..., rows[:, None], columns]
