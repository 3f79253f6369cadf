"""Corridor and obstacle on small hand-drawn masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pspnet.driving.corridor import drivable_corridor, runs
from pspnet.driving.obstacle import nearest_obstacle
from pspnet.driving.view import Camera, View, ViewError

ROAD, CAR, SKY = 3, 8, 0


def drawn(*lines: str) -> np.ndarray:
    """Return a mask drawn with . for road, c for car, s for sky."""
    ids = {".": ROAD, "c": CAR, "s": SKY}
    return np.array([[ids[letter] for letter in line] for line in lines], dtype=np.uint8)


def view(**options: object) -> View:
    return View(frozenset({ROAD}), **options)  # type: ignore[arg-type]


def test_runs() -> None:
    starts, ends = runs(np.array([1, 1, 0, 0, 1, 0, 1], dtype=bool))
    assert (starts.tolist(), ends.tolist()) == ([0, 4, 6], [2, 5, 7])


def test_the_corridor_narrows_until_it_closes() -> None:
    mask = drawn(
        "ssssssss",
        "sss..sss",
        "ss....ss",
        "s......s",
        "........",
    )
    corridor = drivable_corridor(mask, view())
    assert (corridor.bottom, corridor.top) == (4, 1)
    assert corridor.left.tolist() == [0, 1, 2, 3]
    assert corridor.right.tolist() == [8, 7, 6, 5]


def test_the_corridor_is_connected_and_stays_with_the_vehicles_column() -> None:
    mask = drawn(
        "....ssss",  # touches the run below on the left only
        "..s.s...",  # the run at 3 is nearest to the centre; the run at 0 touches too
        "......s.",  # the run at 7 does not contain the column
        "........",
    )
    corridor = drivable_corridor(mask, view())
    assert corridor.left.tolist() == [0, 0, 3, 0]
    assert corridor.right.tolist() == [8, 6, 4, 4]


def test_a_run_that_does_not_touch_the_one_below_closes_the_corridor() -> None:
    mask = drawn("...sssss", "ssss....", "ssss....")
    corridor = drivable_corridor(mask, view())
    assert (corridor.bottom, corridor.top) == (2, 1)


def test_the_nearest_run_is_used_if_the_vehicles_column_is_not_drivable() -> None:
    corridor = drivable_corridor(drawn("..cccc.c"), view())
    assert (corridor.left.tolist(), corridor.right.tolist()) == ([0], [2])


def test_no_drivable_pixel_at_the_bottom_gives_an_empty_corridor() -> None:
    corridor = drivable_corridor(drawn("....", "cccc"), view())
    assert (corridor.bottom, corridor.top, corridor.left.size) == (1, 2, 0)


def test_rows_of_the_hood_are_skipped() -> None:
    corridor = drivable_corridor(drawn("ssss", "....", "....", "cccc"), view(bottom=0.75))
    assert (corridor.bottom, corridor.top) == (2, 1)


def test_the_nearest_obstacle_is_the_lowest_blocked_row() -> None:
    mask = drawn(
        "ssssssss",
        "...sc...",
        "...cc...",
        "c......c",
        "........",
    )
    found = nearest_obstacle(mask, view(width=0.5))
    assert found is not None
    assert (found.row, found.class_id, found.left, found.right, found.metres) == (2, CAR, 2, 6, None)
    wide = nearest_obstacle(mask, view(width=0.99))
    assert wide is not None
    assert wide.row == 3


def test_the_path_narrows_toward_the_horizon() -> None:
    mask = drawn(*["c" + "." * 6 + "c"] * 8)
    straight = nearest_obstacle(mask, view(width=0.9, bottom=1.0))
    assert straight is not None
    assert straight.row == 7
    assert nearest_obstacle(mask, view(width=0.75, horizon=0.25)) is None
    assert view(width=0.75, horizon=0.25).width_at(7, 8, 8) == 6.0
    assert view(width=0.75, horizon=0.25).width_at(4, 8, 8) == pytest.approx(6 * 2.5 / 5.5)
    assert view(width=0.75, horizon=0.25).width_at(1, 8, 8) is None


def test_no_obstacle_without_a_width() -> None:
    assert nearest_obstacle(drawn("cccc"), view()) is None


def test_the_class_of_an_obstacle_is_the_most_frequent_in_the_path() -> None:
    found = nearest_obstacle(drawn("csss", "...."), view(width=0.9))
    assert found is not None
    assert found.class_id == SKY


def test_camera_on_flat_ground() -> None:
    camera = Camera(height=1.5, pitch=0.0, focal=1.0)
    rows = 200
    assert camera.horizon(rows) == 100
    # 45 degrees below the axis, the ground distance equals the camera height.
    assert camera.metres(100 + 200 - 0.5, rows) == pytest.approx(1.5)
    assert camera.metres(149.5, rows) == pytest.approx(1.5 * 200 / 50)
    assert camera.metres(99.0, rows) is None
    # One metre at a distance of 6 m, at a focal length of 200 pixels.
    assert camera.pixels(1.0, 149.5, rows) == pytest.approx(200 / 6)


def test_camera_pitched_down() -> None:
    camera = Camera(height=0.3, pitch=20.0, focal=0.9)
    rows = 360
    assert camera.horizon(rows) == pytest.approx(180 - 324 * math.tan(math.radians(20)))
    assert camera.metres(179.5, rows) == pytest.approx(0.3 / math.tan(math.radians(20)))
    row = camera.horizon(rows)
    assert camera.metres(row - 0.6, rows) is None
    far = camera.metres(row, rows)
    assert far is not None
    assert far > 100


def test_obstacle_distance_is_that_of_its_row() -> None:
    mask = np.full((200, 100), ROAD, dtype=np.uint8)
    mask[:150] = CAR
    camera = Camera(1.5, 0.0, 1.0)
    found = nearest_obstacle(mask, view(width=0.2, camera=camera))
    assert found is not None
    assert found.row == 149
    assert found.metres == camera.metres(149, 200)
    assert found.right - found.left == pytest.approx(0.2 * 200 / found.metres, abs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": 1.2}, "column: found 1.2; expected a fraction"),
        ({"bottom": -0.1}, "bottom: found -0.1"),
        ({"horizon": 0.9, "bottom": 0.8}, r"horizon: found 0.9; expected less than bottom \(0.8\)"),
        ({"width": 1.5}, "width: found 1.5; expected a fraction of the image's width between 0 and 1"),
        ({"width": 0.0}, "width: found 0"),
    ],
)
def test_invalid_view_raises(options: dict[str, float], message: str) -> None:
    with pytest.raises(ViewError, match=message):
        view(**options)


@pytest.mark.parametrize(("height", "pitch", "focal"), [(0, 0, 1), (1, 90, 1), (1, 0, 0), (float("nan"), 0, 1)])
def test_invalid_camera_raises(height: float, pitch: float, focal: float) -> None:
    with pytest.raises(ViewError, match="expected a height and a focal length above 0"):
        Camera(height, pitch, focal)


def test_masks_of_one_pixel() -> None:
    one = np.full((1, 1), ROAD, dtype=np.uint8)
    assert drivable_corridor(one, view()).right.tolist() == [1]
    assert nearest_obstacle(one, view(width=0.5)) is None
