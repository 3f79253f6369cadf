"""Predictions as pictures: overlays, and image, ground truth, prediction and errors side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pspnet.classes import IGNORE_INDEX

_GAP = 4  # px between the pictures of a sheet
_TITLE = 16  # px above each column


def sample_row(image: np.ndarray, target: np.ndarray, prediction: np.ndarray, palette: np.ndarray) -> list[np.ndarray]:
    """Return (H, W, 3) uint8 pictures of one sample: image, ground truth, prediction and errors."""
    wrong = (prediction != target) & (target != IGNORE_INDEX)
    errors = np.where(wrong[..., None], np.array([230, 40, 40], dtype=np.uint8), (image // 3 + 150).astype(np.uint8))
    return [image, palette[target], palette[prediction], errors]


def sample_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], cell_width: int = 320) -> Image.Image:
    """Arrange rows of (H, W, 3) uint8 pictures, scaled to `cell_width` px, under column titles."""
    scaled = [[_scale_to_width(picture, cell_width) for picture in row] for row in rows]
    heights = [row[0].height for row in scaled]
    columns = len(titles)
    sheet = Image.new(
        "RGB",
        (columns * (cell_width + _GAP) + _GAP, _TITLE + sum(heights) + _GAP * (len(heights) + 1)),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (cell_width + _GAP), 2), title, fill=(0, 0, 0))
    top = _TITLE + _GAP
    for row, height in zip(scaled, heights):
        for column, picture in enumerate(row):
            sheet.paste(picture, (_GAP + column * (cell_width + _GAP), top))
        top += height + _GAP
    return sheet


def _scale_to_width(picture: np.ndarray, width: int) -> Image.Image:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    # Nearest neighbour, so that masks contain only colours of the palette.
    return Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.NEAREST)
