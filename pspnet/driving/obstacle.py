"""Nearest obstacle in the path of the vehicle, as described in docs/driving.md.

Legend: H, W mask height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pspnet.driving.view import View, drivable_pixels


@dataclass(frozen=True)
class Obstacle:
    """Lowest row with a pixel that is not drivable in the vehicle's path.

    `left` (inclusive) and `right` (exclusive) bound the path at that row; `class_id` is the most frequent class in it
    that is not drivable; `metres` is the distance on flat ground, None if unknown.
    """

    row: int
    class_id: int
    left: int
    right: int
    metres: float | None


def nearest_obstacle(mask: np.ndarray, view: View) -> Obstacle | None:
    """Return the nearest obstacle straight ahead; None if the path is free up to the horizon or the width is unknown.

    The path is as wide as the vehicle, centred on its column, and narrows toward the horizon if that is known.
    """
    rows, columns = mask.shape
    free = drivable_pixels(mask, view)
    for row in range(view.bottom_row(rows), -1, -1):
        width = view.width_at(row, rows, columns)
        if width is None:
            return None
        left = max(0, math.floor(view.column * columns - width / 2))
        right = min(columns, max(left + 1, math.ceil(view.column * columns + width / 2)))
        blocked = mask[row, left:right][~free[row, left:right]]
        if blocked.size:
            metres = view.camera.metres(row, rows) if view.camera else None
            return Obstacle(row, int(np.bincount(blocked).argmax()), left, right, metres)
    return None
