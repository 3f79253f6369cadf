"""Built-in algorithm's crop and mean IoU on cases computed by hand, and against its published steps."""

from __future__ import annotations

import numpy as np
import pytest

from pspnet.evaluation.metrics import Scores
from pspnet.evaluation.protocols.builtin import CentreView, builtin_scores


def test_the_short_side_is_resized_and_the_centre_cropped() -> None:
    # 8x4 at side 4: nothing is resized, columns 2 to 5 remain.
    image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    mask = np.arange(32, dtype=np.uint8).reshape(4, 8)
    seen, target = CentreView(4)(image, mask)
    np.testing.assert_array_equal(seen, image[:, 2:6])
    np.testing.assert_array_equal(target, mask[:, 2:6])


def test_an_upright_image() -> None:
    image, mask = np.zeros((9, 4, 3), np.uint8), np.repeat(np.arange(9, dtype=np.uint8)[:, None], 4, axis=1)
    # (9 - 4) / 2 = 2.5 rounds to the even 2.
    np.testing.assert_array_equal(CentreView(4)(image, mask)[1][:, 0], [2, 3, 4, 5])


def test_masks_are_resized_by_nearest_neighbour() -> None:
    # 4x4 to 2x2: Pillow takes the pixel at the centre of each 2x2 block, its lower right one.
    mask = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 255]], dtype=np.uint8)
    seen, target = CentreView(2)(np.full((4, 4, 3), 9, np.uint8), mask)
    assert target.tolist() == [[5, 7], [13, 255]]
    assert (seen == 9).all()


def test_downscaled_images_are_averaged() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, ::2] = 200  # every other column
    seen, _ = CentreView(4)(image, np.zeros((8, 8), np.uint8))
    assert ((seen > 60) & (seen < 140)).all()


@pytest.mark.parametrize("size", [(33, 50), (50, 33), (37, 37), (100, 31), (32, 47)])
def test_every_size_gives_the_crop(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 3, size).astype(np.uint8)
    seen, target = CentreView(40)(image, mask, rng)
    assert seen.shape == (40, 40, 3)
    assert target.shape == (40, 40)
    assert set(np.unique(target)) <= {0, 1, 2}


def test_absent_classes_count_as_0() -> None:
    # Class 0: 3 of 4, class 1: 1 of 2 (its pixel and one of class 0), class 2 absent.
    counts = np.array([[3, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=np.int64)
    scores, honest = builtin_scores(counts), Scores.from_counts(counts)
    assert scores.mIOU == pytest.approx((0.75 + 0.5 + 0) / 3, rel=1e-15)
    assert honest.mIOU == pytest.approx((0.75 + 0.5) / 2, rel=1e-15)
    assert scores.per_class_iou == honest.per_class_iou == (0.75, 0.5, None)
    assert scores.pixel_accuracy == honest.pixel_accuracy == 0.8


def test_with_all_classes_present_both_means_agree() -> None:
    counts = np.random.default_rng(1).integers(1, 50, (5, 5))
    assert builtin_scores(counts).mIOU == pytest.approx(Scores.from_counts(counts).mIOU, rel=1e-15)


def test_no_scored_pixels_give_0() -> None:
    assert builtin_scores(np.zeros((3, 3), dtype=np.int64)).mIOU == 0
