"""Boundary IoU against the authors' procedure for each class, and against cases counted by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pspnet.evaluation.boundary import boundary, boundary_distance, boundary_iou, count_boundary, mean_boundary_iou


def eroded_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Boundary as published by Cheng et al.: the mask minus itself eroded `distance` times by 3x3, 0 outside."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask.astype(np.uint8) - eroded == 1


def searched_boundary(mask: np.ndarray, scored: np.ndarray, distance: int) -> np.ndarray:
    """Boundary by exhaustive search: another class or the image's edge within a square around a pixel."""
    height, width = mask.shape
    found = np.zeros(mask.shape, dtype=bool)
    for y in range(height):
        for x in range(width):
            if not scored[y, x]:
                continue
            rows, columns = np.arange(y - distance, y + distance + 1), np.arange(x - distance, x + distance + 1)
            at_edge = rows[0] < 0 or columns[0] < 0 or rows[-1] >= height or columns[-1] >= width
            rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
            window = np.ix_(rows, columns)
            found[y, x] = at_edge or bool(((mask[window] != mask[y, x]) & scored[window]).any())
    return found


def blocks(seed: int, shape: tuple[int, int], classes: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, classes, (shape[0] // 9 + 1, shape[1] // 9 + 1), dtype=np.uint8)
    return small.repeat(9, 0).repeat(9, 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize(("shape", "distance"), [((40, 57), 1), ((40, 57), 2), ((150, 200), 5)])
def test_one_pass_over_all_classes_equals_the_authors_procedure(shape: tuple[int, int], distance: int) -> None:
    mask = blocks(1, shape, 4)
    found = boundary(mask, np.ones(shape, dtype=bool), distance)
    for label in range(4):
        np.testing.assert_array_equal(found & (mask == label), eroded_boundary(mask == label, distance))


def test_ignored_pixels_make_no_contour() -> None:
    mask = blocks(2, (31, 44), 253)
    scored = np.random.default_rng(3).random(mask.shape) < 0.6
    np.testing.assert_array_equal(boundary(mask, scored, 2), searched_boundary(mask, scored, 2))


def test_the_distance_is_two_percent_of_the_diagonal() -> None:
    assert boundary_distance(300, 400) == 10
    assert boundary_distance(1024, 2048) == 46
    assert boundary_distance(3, 4) == 1


def test_counts_of_a_small_mask() -> None:
    """8x8, d = 1: the left half is class 0, the right half class 1; the prediction's contour is one column off."""
    target, prediction = np.zeros((8, 8), dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8)
    target[:, 4:], prediction[:, 5:] = 1, 1
    # A class's boundary is its outer ring: 8x4 minus 6x2 inside is 20, 8x5 minus 6x3 is 22, 8x3 minus 6x1 is 18.
    counts = count_boundary(prediction, target, 3)
    assert counts[0].tolist() == [20, 22, 8 + 2 * 3]  # column 0, and the ends of columns 1 to 3
    assert counts[1].tolist() == [20, 18, 8 + 2 * 2]  # column 7, and the ends of columns 5 and 6
    assert counts[2].tolist() == [0, 0, 0]
    iou = boundary_iou(counts)
    assert iou[:2].tolist() == [14 / 28, 12 / 26]
    assert np.isnan(iou[2])
    assert mean_boundary_iou(counts) == (14 / 28 + 12 / 26) / 2


def test_ignored_pixels_are_not_counted() -> None:
    target, prediction = blocks(4, (40, 50), 3), blocks(5, (40, 50), 3)
    target[10:20, 10:30] = 255
    scored = target != 255
    counts = count_boundary(prediction, target, 3)
    in_target, in_prediction = searched_boundary(target, scored, 1), searched_boundary(prediction, scored, 1)
    for label in range(3):
        a, b = in_target & (target == label), in_prediction & (prediction == label)
        assert counts[label].tolist() == [a.sum(), b.sum(), (a & b).sum()]
    elsewhere = prediction.copy()
    elsewhere[~scored] = 200  # not a class
    np.testing.assert_array_equal(count_boundary(elsewhere, target, 3), counts)


def test_a_perfect_mask_has_boundary_iou_1_and_no_scored_pixels_give_0() -> None:
    target = blocks(6, (60, 80), 5)
    assert mean_boundary_iou(count_boundary(target, target, 5)) == 1.0
    assert mean_boundary_iou(count_boundary(target, np.full_like(target, 255), 5)) == 0.0
