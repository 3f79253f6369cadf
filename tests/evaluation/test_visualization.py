"""Sample sheets, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from pspnet.classes import voc_palette
from pspnet.evaluation.visualization import sample_row, sample_sheet

PALETTE = voc_palette()


def flat(height: int, width: int, *colour: int) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def test_a_row_shows_image_ground_truth_prediction_and_errors() -> None:
    image = flat(2, 2, 90, 30, 0)
    target = np.array([[0, 1], [255, 2]], dtype=np.uint8)
    prediction = np.array([[0, 2], [1, 2]], dtype=np.uint8)
    pictures = sample_row(image, target, prediction, PALETTE)
    assert [(picture.shape, picture.dtype) for picture in pictures] == [((2, 2, 3), np.uint8)] * 4
    np.testing.assert_array_equal(pictures[0], image)
    np.testing.assert_array_equal(pictures[1], PALETTE[target])
    np.testing.assert_array_equal(pictures[2], PALETTE[prediction])
    red, pale = [230, 40, 40], [180, 160, 150]
    assert pictures[3].tolist() == [[pale, red], [pale, pale]]  # the ignored pixel is not an error


@pytest.mark.parametrize("titles", [("image", "ground truth"), ("a", "b", "c", "d")])
def test_the_sheets_size_follows_its_pictures(titles: tuple[str, ...]) -> None:
    rows = [[flat(30, 60, 1, 2, 3)] * len(titles), [flat(50, 25, 4, 5, 6)] * len(titles)]
    sheet = sample_sheet(rows, titles, cell_width=100)
    assert sheet.mode == "RGB"
    assert sheet.size == (len(titles) * 104 + 4, 16 + 4 + 50 + 4 + 200 + 4)


def test_the_sheet_contains_every_picture_at_its_position() -> None:
    mask_colours = np.kron(PALETTE[:4].reshape(2, 2, 3), np.ones((5, 5, 1), dtype=np.uint8))  # (10, 10, 3)
    sheet = np.asarray(sample_sheet([[flat(10, 10, 200, 0, 0), mask_colours]], ("left", "right"), cell_width=40))
    assert (sheet[20:60, 4:44] == [200, 0, 0]).all()
    right = sheet[20:60, 48:88]
    np.testing.assert_array_equal(right, np.kron(PALETTE[:4].reshape(2, 2, 3), np.ones((20, 20, 1), dtype=np.uint8)))
    assert (sheet[16:20] == 255).all()
    assert (sheet[60:] == 255).all()
    assert (sheet[20:60, 44:48] == 255).all()
    assert (sheet[:16, 4:44] < 128).any()  # title above each column
    assert (sheet[:16, 48:88] < 128).any()


def test_very_wide_pictures_keep_a_height() -> None:
    assert sample_sheet([[flat(1, 2000, 0, 0, 0)]], ("strip",), cell_width=50).size == (58, 16 + 4 + 1 + 4)


def test_rows_of_one_sheet_may_be_read_only() -> None:
    picture = flat(4, 4, 7, 7, 7)[:, ::-1]
    picture.flags.writeable = False
    assert sample_sheet([[picture]], ("one",), cell_width=8).getpixel((5, 21)) == (7, 7, 7)
