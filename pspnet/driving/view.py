"""Camera and view of the vehicle in the image, for flat ground.

Rows count from 0 at the top.

Legend: H, W mask height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pspnet.errors import PspnetError


class ViewError(PspnetError):
    """Invalid geometry of a camera or a vehicle."""


@dataclass(frozen=True)
class Camera:
    """Camera above flat ground, facing forward.

    height: metres above the ground.
    pitch: degrees, positive downward.
    focal: focal length in pixels divided by H; equals 0.5 / tan(vertical angle of view / 2).
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
        """Return the row of points at infinity; may be outside the image."""
        return rows / 2 - self.focal * rows * math.tan(math.radians(self.pitch))

    def metres(self, row: float, rows: int) -> float | None:
        """Return the ground distance to a row's centre in metres; None at the horizon and above it."""
        below_axis = math.atan((row + 0.5 - rows / 2) / (self.focal * rows))
        angle = math.radians(self.pitch) + below_axis
        return self.height / math.tan(angle) if 0 < angle < math.pi / 2 else None

    def pixels(self, metres: float, row: float, rows: int) -> float | None:
        """Return the width in pixels of an object of `metres` width on the ground at a row; None as for metres()."""
        ahead = self.metres(row, rows)
        if ahead is None:
            return None
        pitch = math.radians(self.pitch)
        depth = ahead * math.cos(pitch) + self.height * math.sin(pitch)  # along the optical axis
        return metres * self.focal * rows / depth


@dataclass(frozen=True)
class View:
    """Position of the vehicle in the image.

    drivable: class ids that it may drive on.
    column: its centre, as a fraction of W from the left.
    bottom: lowest row above its own hood, as a fraction of H from the top; 1 is the last row.
    width: its width: metres with a camera, else a fraction of W at `bottom`. None: obstacles are not computed.
    horizon: row of the horizon, as a fraction of H; None: computed from the camera, or unknown.
    camera: required for metres.

    Raises ViewError for values out of range.
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
                raise ViewError(f"{name}: found {value:g}; expected a fraction of the image from 0 to 1.")
        if self.horizon is not None and self.horizon >= self.bottom:
            raise ViewError(f"horizon: found {self.horizon:g}; expected less than bottom ({self.bottom:g}).")
        if self.width is not None and not (0 < self.width < (100 if self.camera else 1)):
            kind = "metres above 0, below 100" if self.camera else "a fraction of the image's width between 0 and 1"
            raise ViewError(f"width: found {self.width:g}; expected {kind}.")

    def bottom_row(self, rows: int) -> int:
        """Return the lowest row of the ground."""
        return max(0, math.ceil(self.bottom * rows) - 1)

    def horizon_row(self, rows: int) -> float | None:
        """Return the row of the horizon; None if unknown."""
        if self.horizon is not None:
            return self.horizon * rows
        return None if self.camera is None else self.camera.horizon(rows)

    def width_at(self, row: int, rows: int, columns: int) -> float | None:
        """Return the vehicle's width in pixels at a row; None above the horizon."""
        if self.width is None:
            return None
        if self.camera is not None:
            return self.camera.pixels(self.width, row, rows)
        horizon = self.horizon_row(rows)
        if horizon is None:
            return self.width * columns
        scale = (row + 0.5 - horizon) / (self.bottom_row(rows) + 0.5 - horizon)
        return self.width * columns * scale if scale > 0 else None


def drivable_pixels(mask: np.ndarray, view: View) -> np.ndarray:
    """Return the drivable pixels of (H, W) uint8 class ids as (H, W) bool."""
    table = np.zeros(256, dtype=bool)
    table[list(view.drivable)] = True
    free: np.ndarray = table[mask]
    return free
