"""Masks and items for tests of mask files."""

from __future__ import annotations

import numpy as np

from pspnet.masks.frames import Frame, MaskedFrame

START = 1_700_000_000.25
"""Capture time of the first item."""


def scene(index: int, height: int = 24, width: int = 33, classes: int = 5) -> np.ndarray:
    """(H, W) uint8: blocks of classes with a disc that moves with the index."""
    rows, columns = np.mgrid[:height, :width]
    mask = ((rows // 6 + columns // 9) % classes).astype(np.uint8)
    mask[(rows - 8) ** 2 + (columns - 5 - index) ** 2 < 16] = classes
    return mask


def item(index: int, mask: np.ndarray | None = None, rate: float = 10.0, **labels: str) -> MaskedFrame:
    """Return frame `index` of a stream of `rate` frames per second, with a latency of 0.5 s."""
    mask = scene(index) if mask is None else mask
    image = np.broadcast_to(np.uint8(0), (*mask.shape, 3))
    frame = Frame(index, image, START + index / rate, 5.0 + index / rate, index / rate, labels)
    return MaskedFrame(frame, mask, 5.5 + index / rate)
