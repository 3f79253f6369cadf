"""Overlays, pixel by pixel."""

from __future__ import annotations

import numpy as np

from pspnet.classes import voc_palette
from pspnet.masks.blending import overlay

PALETTE = voc_palette()


def flat(height: int, width: int, *colour: int) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def test_the_overlay_blends_half_and_half() -> None:
    image = flat(1, 3, 100, 50, 200)
    mask = np.array([[0, 1, 255]], dtype=np.uint8)
    result = overlay(image, mask, PALETTE)
    assert result.dtype == np.uint8
    assert result[0].tolist() == [[50, 25, 100], [114, 25, 100], [100, 50, 200]]  # VOC's class 1 is (128, 0, 0)


def test_the_overlays_opacity() -> None:
    image, mask = flat(1, 1, 255, 255, 255), np.array([[1]], dtype=np.uint8)
    assert overlay(image, mask, PALETTE, opacity=0.0)[0, 0].tolist() == [255, 255, 255]
    assert overlay(image, mask, PALETTE, opacity=1.0)[0, 0].tolist() == [128, 0, 0]
    assert overlay(image, mask, PALETTE, opacity=0.25)[0, 0].tolist() == [223, 191, 191]


def test_half_and_half_rounds_to_the_nearest_level() -> None:
    levels = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(levels[:, None, None], (256, 256, 3))
    mask = np.broadcast_to(levels[None, :], (256, 256))
    palette = np.repeat(levels[:, None], 3, axis=1)
    expected = (image * 0.5 + palette[mask] * 0.5 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(overlay(image, mask, palette)[:, :255], expected[:, :255])
    np.testing.assert_array_equal(overlay(image, mask, palette)[:, 255], image[:, 255])


def test_the_overlay_does_not_modify_its_arguments() -> None:
    image, mask = flat(2, 2, 9, 9, 9), np.ones((2, 2), dtype=np.uint8)
    image.flags.writeable = False
    overlay(image, mask, PALETTE)
    assert (image == 9).all()
