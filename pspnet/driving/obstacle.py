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
    """The lowest row at which something that is not drivable lies in the vehicle's way.

    `class_id` is the most frequent such class within the way at that row; `metres` for flat ground, None if unknown.
    """

    row: int
    class_id: int
    left: int
    right: int
    metres: float | None


def nearest_obstacle(mask: np.ndarray, view: View) -> Obstacle | None:
    """The nearest obstacle straight ahead; None where the way is free to the horizon, or the width is not known.

    The way is as wide as the vehicle, around its column, and narrows toward the horizon where that is known.
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
