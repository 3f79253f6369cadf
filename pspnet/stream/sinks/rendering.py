"""Rendering of masks as colour overlays with a legend.

Legend: H, W image height and width.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pspnet.masks.blending import overlay
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import SinkContext

_ROW, _COLUMN, _MARGIN = 16, 116, 4  # px, of the legend
_MAX_CLASSES = 32  # with more classes, the legend lists the largest ones of the frame


def render(item: MaskedFrame, context: SinkContext) -> np.ndarray:
    """Render an item as (H + legend, W, 3) uint8 RGB: the overlay, with the legend if the context enables it."""
    picture = overlay(item.frame.image, item.mask, context.palette, context.opacity)
    if not context.legend:
        return picture
    return np.concatenate([picture, legend(item.mask, context)])


def legend(mask: np.ndarray, context: SinkContext) -> np.ndarray:
    """Render colour and name of every class, or of the largest ones if there are too many, as (rows, W, 3) uint8.

    The height depends only on W and the number of classes, so that all frames of a video have one size.
    """
    width = mask.shape[1]
    names = context.class_names
    columns = max(1, (width - _MARGIN) // _COLUMN)
    shown = _shown(mask, len(names))
    rows = -(-min(len(names), _MAX_CLASSES) // columns)
    sheet = Image.new("RGB", (width, rows * _ROW + 2 * _MARGIN), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for position, class_id in enumerate(shown):
        left = _MARGIN + position % columns * _COLUMN
        top = _MARGIN + position // columns * _ROW
        colour = tuple(int(value) for value in context.palette[class_id])
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=colour, outline=(200, 200, 200))
        draw.text((left + 16, top + 2), names[class_id][:16], fill=(235, 235, 235))
    return np.asarray(sheet)


def _shown(mask: np.ndarray, classes: int) -> list[int]:
    if classes <= _MAX_CLASSES:
        return list(range(classes))
    counts = np.bincount(mask.ravel(), minlength=classes)[:classes]
    return sorted(int(class_id) for class_id in np.argsort(-counts, kind="stable")[:_MAX_CLASSES])
