"""Blending of a mask's colours with its image.

Legend: H, W image height and width.
"""

from __future__ import annotations

import numpy as np

from pspnet.classes import IGNORE_INDEX


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Blend an (H, W, 3) uint8 image with the (H, W) mask's colours; ignored pixels keep the image's colour.

    `palette` is (256, 3) uint8. `opacity` is rounded to a multiple of 1/256, and the result to the nearest level.
    """
    weight = round(256 * opacity)
    colours = np.multiply(palette, weight, dtype=np.uint16) + np.uint16(128)  # (256, 3); 255 * 256 + 128 fits
    mixed = np.take(colours, mask, axis=0)  # (H, W) -> (H, W, 3); several times as fast as colours[mask]
    mixed += np.multiply(image, 256 - weight, dtype=np.uint16)
    blended: np.ndarray = (mixed >> 8).astype(np.uint8)
    ignored = mask == IGNORE_INDEX
    if ignored.any():
        blended[ignored] = image[ignored]
    return blended
