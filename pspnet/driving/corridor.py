"""Drivable corridor of a mask, as described in docs/driving.md.

Legend: H, W mask height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pspnet.driving.view import View, drivable_pixels


@dataclass(frozen=True)
class Corridor:
    """Drivable run of every row from `bottom` up to `top`; `left` inclusive, `right` exclusive, [0] at the bottom.

    `bottom` < `top` for an empty corridor: the bottom row has no drivable pixel.
    """

    bottom: int
    top: int
    left: np.ndarray
    right: np.ndarray


def runs(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and the ends (exclusive) of the runs of True in a (W,) bool row."""
    edges = np.diff(np.concatenate(([0], row.astype(np.int8), [0])))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def drivable_corridor(mask: np.ndarray, view: View) -> Corridor:
    """Return the corridor from the bottom row upward until it closes.

    At the bottom it is the run of drivable pixels that contains the vehicle's column, or the nearest run. In each row
    above, it is the run that contains the vehicle's column or is nearest to it, among those that touch the run below.
    """
    rows, columns = mask.shape
    free = drivable_pixels(mask, view)
    bottom, middle = view.bottom_row(rows), view.column * columns
    left, right = [], []
    below: tuple[int, int] | None = None
    for row in range(bottom, -1, -1):
        starts, ends = runs(free[row])
        if below is not None:
            touching = (starts < below[1]) & (ends > below[0])
            starts, ends = starts[touching], ends[touching]
        if starts.size == 0:
            break
        # Distance of the column from each run, 0 inside.
        outside = np.maximum(0, np.maximum(starts - middle, middle - ends))
        best = int(np.argmin(outside))
        below = int(starts[best]), int(ends[best])
        left.append(below[0])
        right.append(below[1])
    return Corridor(bottom, bottom - len(left) + 1, np.array(left, dtype=np.int64), np.array(right, dtype=np.int64))
