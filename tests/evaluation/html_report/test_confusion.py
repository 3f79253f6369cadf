"""Confusion matrix as table or image, and the largest confusions."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from pspnet.evaluation.html_report.confusion import (
    MAX_TABLE_CLASSES,
    cell_colours,
    draw_confusions,
    largest_confusions,
)

COUNTS = np.array([[90, 10, 0], [1, 0, 999], [0, 0, 0]])
NAMES = ("sky", "road", "tree")


def test_few_classes_are_a_table_of_fractions() -> None:
    found = draw_confusions(COUNTS, NAMES)
    assert found.image is None
    assert [[cell.text for cell in row] for row in found.rows] == [["90", "10", ""], ["·", "", "100"], ["", "", ""]]
    assert found.rows[0][1].title == "sky predicted as road: 10 px, 10.00 % of sky"
    assert found.rows[2][2].background == "#ffffff"
    assert (found.rows[0][0].dark, found.rows[0][1].dark) == (True, False)


def test_correct_is_blue_and_wrong_is_orange() -> None:
    colours = cell_colours(np.array([[1.0, 0.25], [0.0, 0.0]])).tolist()
    assert colours[0][0] == [8, 81, 156]
    assert colours[0][1] == [217, 164, 128]  # half strength: the root of a quarter
    assert colours[1] == [[255, 255, 255], [255, 255, 255]]


def test_many_classes_are_an_image_with_data() -> None:
    classes = MAX_TABLE_CLASSES + 1
    counts = np.diag(np.arange(classes))
    counts[0, 5] = 7
    found = draw_confusions(counts, tuple(f"class {index}" for index in range(classes)))
    assert found.rows is None
    assert found.data["codes"][0] == 5
    assert found.data["counts"][0] == 7
    assert found.data["totals"][:3] == [7, 1, 2]
    picture = Image.open(io.BytesIO(base64.b64decode(found.image.split(",")[1])))
    assert picture.size == (classes, classes)
    assert picture.getpixel((5, 0)) == (179, 72, 0)  # x is the prediction


def test_the_largest_confusions_come_first() -> None:
    assert largest_confusions(COUNTS, NAMES) == [
        ("road", "tree", 999, 0.999),
        ("sky", "road", 10, 0.1),
        ("road", "sky", 1, 0.001),
    ]
    assert largest_confusions(COUNTS, NAMES, most=1) == [("road", "tree", 999, 0.999)]
    assert largest_confusions(np.diag([1, 2, 3]), NAMES) == []
