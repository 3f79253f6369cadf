"""Summary of a mask as one line of JSON: class counts, corridor and obstacle.

Legend: H, W mask height and width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pspnet.driving.corridor import Corridor, drivable_corridor
from pspnet.driving.obstacle import nearest_obstacle
from pspnet.driving.view import View
from pspnet.masks.class_counts import class_counts, class_name

ROWS = 8
"""Maximum number of corridor rows in a summary."""


def summarise(mask: np.ndarray, class_names: Sequence[str], view: View | None) -> dict[str, Any]:
    """Return the summary that docs/driving.md defines as JSON types; without a view only size and class counts.

    Args:
        mask: (H, W) uint8 class ids.
        class_names: names in the order of the ids; a class without a name is called `class_5`.
        view: drivable classes and position of the vehicle in the image.
    """
    rows, columns = mask.shape
    found: dict[str, Any] = {"height": rows, "width": columns, "classes": class_counts(mask, class_names)}
    if view is None:
        return found
    found["corridor"] = _corridor(drivable_corridor(mask, view), view, rows, columns)
    if view.width is not None:
        obstacle = nearest_obstacle(mask, view)
        found["obstacle"] = None
        if obstacle is not None:
            found["obstacle"] = {
                "row": obstacle.row,
                "height": round(obstacle.row / rows, 6),
                "class": class_name(obstacle.class_id, class_names),
            }
            if obstacle.metres is not None:
                found["obstacle"]["metres"] = round(obstacle.metres, 3)
    return found


def _corridor(corridor: Corridor, view: View, rows: int, columns: int) -> dict[str, Any] | None:
    """Return the limits of the corridor and up to ROWS of its rows, evenly spaced from the bottom to the top."""
    length = corridor.left.size
    if length == 0:
        return None
    lines = []
    for at in np.unique(np.linspace(0, length - 1, min(ROWS, length)).round().astype(int)):
        row, left, right = corridor.bottom - int(at), int(corridor.left[at]), int(corridor.right[at])
        line = {
            "row": row,
            "left": left,
            "right": right,
            "width": round((right - left) / columns, 6),
            "offset": round((left + right) / 2 / columns - view.column, 6),
        }
        metres = view.camera.metres(row, rows) if view.camera else None
        lines.append(line if metres is None else {**line, "metres": round(metres, 3)})
    return {"bottom": corridor.bottom, "top": corridor.top, "height": round(corridor.top / rows, 6), "rows": lines}


def json_line(values: Mapping[str, Any]) -> str:
    """Return one line of JSON with its line end. Deterministic; raises ValueError for NaN, which JSON lacks."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
