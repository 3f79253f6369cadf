"""Boundary IoU of each class (Cheng et al. 2021, "Boundary IoU", section 4).

The boundary of a class in a mask is the part of the class within d px of its contour, d being 2 % of the image's
diagonal. Boundary IoU is the IoU of the two masks' boundaries. As in the authors' code (boundary_iou_api,
`mask_to_boundary`), distances are chessboard distances, and the image's edge is a contour. Ignored pixels are not
counted and make no contour: otherwise every prediction would match the contours of VOC's unlabelled rims.

All classes are computed in one pass: a pixel belongs to its class's boundary if the smallest or the largest class id
within d px differs from its own.

Legend: C classes, H, W image height and width.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

DISTANCE_FRACTION = 0.02


def boundary_distance(height: int, width: int) -> int:
    """Return d in px: 2 % of the diagonal, at least 1."""
    return max(1, round(DISTANCE_FRACTION * math.hypot(height, width)))


def boundary(mask: np.ndarray, scored: np.ndarray, distance: int) -> np.ndarray:
    """Return (H, W) bool: the scored pixels with another class or the image's edge within `distance` px.

    Args:
        mask: (H, W) uint8 class ids 0..253.
        scored: (H, W) bool; the others count neither as pixels nor as another class.
    """
    side = 2 * distance + 1
    kernel = np.ones((side, side), dtype=np.uint8)
    ids = mask + np.uint8(1)  # 1..254; 0 and 255 are neither
    least = cv2.erode(np.where(scored, ids, np.uint8(255)), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    greatest = cv2.dilate(np.where(scored, ids, np.uint8(0)), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=255)
    found: np.ndarray = scored & ((least != ids) | (greatest != ids))
    return found


def count_boundary(prediction: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """(H, W) uint8 masks -> (C, 3) int64: pixels of each class's boundary in ground truth, in prediction, in both.

    Targets of num_classes or above (255 = ignore) are not counted; predictions must be below num_classes elsewhere.
    """
    scored = target < num_classes
    distance = boundary_distance(*target.shape)
    in_target = boundary(target, scored, distance)
    in_prediction = boundary(prediction, scored, distance)
    both = in_target & in_prediction & (target == prediction)
    parts = [target[in_target], prediction[in_prediction], target[both]]
    return np.stack([np.bincount(part, minlength=num_classes) for part in parts], axis=1).astype(np.int64)


def boundary_iou(counts: np.ndarray) -> np.ndarray:
    """(..., C, 3) counts -> (..., C) Boundary IoU, NaN for a class without a boundary in either mask."""
    counts = counts.astype(np.float64)
    union = counts[..., 0] + counts[..., 1] - counts[..., 2]
    iou: np.ndarray = np.divide(counts[..., 2], union, out=np.full(union.shape, np.nan), where=union > 0)
    return iou


def mean_boundary_iou(counts: np.ndarray) -> float:
    """(C, 3) counts -> mean Boundary IoU of the classes that have a boundary; 0 without any."""
    found = boundary_iou(counts)
    return float(np.nanmean(found)) if not np.isnan(found).all() else 0.0
