"""What a mask says about the way ahead: class shares, the drivable corridor, the nearest obstacle. Needs numpy only.

All of it is geometry in the image, as docs/driving.md describes it; metres only where the camera is known, and then for
flat ground. Rows count from 0 at the top.

Legend: H, W mask height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pspnet.errors import PspnetError


class ViewError(PspnetError):
    """Numbers of a camera or a vehicle that cannot be."""


@dataclass(frozen=True)
class Camera:
    """A camera above flat ground, looking ahead.

    height: metres above the ground.
    pitch: degrees that it looks down, negative for up.
    focal: focal length in image heights: in pixels, divided by H; 0.5 / tan(vertical angle of view / 2).
    """

    height: float
    pitch: float
    focal: float

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.focal > 0 and -90 < self.pitch < 90):
            raise ViewError(
                f"camera: found height {self.height:g}, pitch {self.pitch:g}, focal {self.focal:g}; expected a height "
                "and a focal length above 0 and a pitch between -90 and 90 degrees."
            )

    def horizon(self, rows: int) -> float:
        """The row of points at infinity; may lie outside the image."""
        return rows / 2 - self.focal * rows * math.tan(math.radians(self.pitch))

    def metres(self, row: float, rows: int) -> float | None:
        """From the camera's foot to the ground seen at a row's centre; None at the horizon and above it."""
        below_axis = math.atan((row + 0.5 - rows / 2) / (self.focal * rows))
        angle = math.radians(self.pitch) + below_axis
        return self.height / math.tan(angle) if 0 < angle < math.pi / 2 else None

    def pixels(self, metres: float, row: float, rows: int) -> float | None:
        """How wide something of this width on the ground at this row is in the image; None as for metres()."""
        ahead = self.metres(row, rows)
        if ahead is None:
            return None
        pitch = math.radians(self.pitch)
        depth = ahead * math.cos(pitch) + self.height * math.sin(pitch)  # along the optical axis
        return metres * self.focal * rows / depth


@dataclass(frozen=True)
class View:
    """Where in the image the vehicle drives.

    drivable: class ids that it may drive on.
    column: its middle, as a share of W from the left.
    bottom: where the ground begins above its own hood, as a share of H from the top; 1 is the last row.
    width: its width: metres with a camera, else the share of W that it takes at the bottom. None: no obstacles.
    horizon: the row at which the ground ends, as a share of H; None: taken from the camera, or unknown.
    camera: for metres.
    """

    drivable: frozenset[int]
    column: float = 0.5
    bottom: float = 1.0
    width: float | None = None
    horizon: float | None = None
    camera: Camera | None = None

    def __post_init__(self) -> None:
        for name, value in (("column", self.column), ("bottom", self.bottom), ("horizon", self.horizon)):
            if value is not None and not 0 <= value <= 1:
                raise ViewError(f"{name}: found {value:g}, expected a share of the image from 0 to 1.")
        if self.horizon is not None and self.horizon >= self.bottom:
            raise ViewError(f"horizon: found {self.horizon:g}, expected less than bottom ({self.bottom:g}).")
        if self.width is not None and not (0 < self.width < (100 if self.camera else 1)):
            kind = "metres" if self.camera else "a share of the image's width between 0 and 1"
            raise ViewError(f"width: found {self.width:g}, expected {kind}.")

    def bottom_row(self, rows: int) -> int:
        """The lowest row that is looked at."""
        return max(0, math.ceil(self.bottom * rows) - 1)

    def horizon_row(self, rows: int) -> float | None:
        """The row at which the ground ends, if it is known."""
        if self.horizon is not None:
            return self.horizon * rows
        return None if self.camera is None else self.camera.horizon(rows)

    def width_at(self, row: int, rows: int, columns: int) -> float | None:
        """The vehicle's width in pixels if it stood at this row; None above the horizon."""
        if self.width is None:
            return None
        if self.camera is not None:
            return self.camera.pixels(self.width, row, rows)
        horizon = self.horizon_row(rows)
        if horizon is None:
            return self.width * columns
        share = (row + 0.5 - horizon) / (self.bottom_row(rows) + 0.5 - horizon)
        return self.width * columns * share if share > 0 else None


@dataclass(frozen=True)
class Corridor:
    """The drivable run of every row from `bottom` up to `top`; `left` inclusive, `right` exclusive, [0] at the bottom.

    `bottom` < `top` for none: the bottom row has no drivable pixel.
    """

    bottom: int
    top: int
    left: np.ndarray
    right: np.ndarray


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


def runs(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of True in a (W,) bool row begin, and where they end (exclusive)."""
    edges = np.diff(np.concatenate(([0], row.astype(np.int8), [0])))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def drivable_corridor(mask: np.ndarray, view: View) -> Corridor:
    """The corridor from the bottom row upward until it closes.

    At the bottom it is the run of drivable pixels that holds the vehicle's column, or the nearest one. In each row
    above it is, among the runs that touch the one below, the one that holds the vehicle's column or is nearest to it.
    """
    rows, columns = mask.shape
    free = _drivable(mask, view)
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
        # How far the column lies outside each run, 0 within it.
        outside = np.maximum(0, np.maximum(starts - middle, middle - ends))
        best = int(np.argmin(outside))
        below = int(starts[best]), int(ends[best])
        left.append(below[0])
        right.append(below[1])
    return Corridor(bottom, bottom - len(left) + 1, np.array(left, dtype=np.int64), np.array(right, dtype=np.int64))


def nearest_obstacle(mask: np.ndarray, view: View) -> Obstacle | None:
    """The nearest obstacle straight ahead; None where the way is free to the horizon, or the width is not known.

    The way is as wide as the vehicle, around its column, and narrows toward the horizon where that is known.
    """
    rows, columns = mask.shape
    free = _drivable(mask, view)
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


def _drivable(mask: np.ndarray, view: View) -> np.ndarray:
    """(H, W) uint8 class ids -> (H, W) bool."""
    table = np.zeros(256, dtype=bool)
    table[list(view.drivable)] = True
    free: np.ndarray = table[mask]
    return free
