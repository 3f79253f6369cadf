"""Scores with 95 % intervals over images, and differences of two evaluations of the same images.

Method: percentile bootstrap (Efron and Tibshirani 1993, chapter 13). A resample draws n of the n images with
replacement and computes the score of their summed counts; the interval is the 2.5th to the 97.5th percentile over
RESAMPLES resamples. Differences are paired: both evaluations use the same resamples.

Legend: n images, C classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pspnet.errors import DataError
from pspnet.evaluation.boundary import boundary_iou
from pspnet.evaluation.calibration import expected_calibration_error
from pspnet.evaluation.per_image import Record

RESAMPLES = 2000
SEED = 0
# Upper limit of resamples times images whose weights are in memory at a time.
_MAX_WEIGHTS = 2**21

OVERALL = ("mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "boundary_mIOU", "calibration_error")
BY_CLASS = ("iou", "recall", "precision", "boundary_iou")
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ImageCounts:
    """Per-image counts from which the scores of any set of images are computed.

    Attributes:
        names: of the images, n.
        correct, target, predicted: (n, C) pixels of each class: correct, in the ground truth, in the prediction.
        boundary: (n, C, 3), None if not counted.
        confidence: (n, 3, bins), None if not counted.
        absent_is_zero: whether an absent class counts as 0 in the mean IoU, as in `builtin`.
    """

    names: list[str]
    correct: np.ndarray
    target: np.ndarray
    predicted: np.ndarray
    boundary: np.ndarray | None = None
    confidence: np.ndarray | None = None
    absent_is_zero: bool = False

    @classmethod
    def of(cls, record: Record, absent_is_zero: bool = False) -> ImageCounts:
        """Read the counts of a record's images, sorted by name."""
        shape = (len(record), record.num_classes)
        correct, target, predicted = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        for index, name in enumerate(record.names):
            matrix = record.matrix(name)
            correct[index], target[index], predicted[index] = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        details = record.detail("boundary"), record.detail("confidence")
        return cls(record.names, correct, target, predicted, *details, absent_is_zero)

    def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Compute scores over all images with (R, n) weights; without weights each image counts once, R = 1.

        OVERALL scores are (R,), BY_CLASS (R, C); NaN for a zero denominator. Scores of missing counts are left out.
        """
        weights = np.ones((1, len(self.names))) if weights is None else weights

        def summed(counts: np.ndarray) -> np.ndarray:
            # float64 is exact for pixel counts up to 2^53, and its matrix product is fast.
            flat = weights @ counts.reshape(len(counts), -1).astype(np.float64)
            return flat.reshape(len(weights), *counts.shape[1:])

        correct, target, predicted = summed(self.correct), summed(self.target), summed(self.predicted)
        iou = _ratio(correct, target + predicted - correct)  # (R, C)
        recall = _ratio(correct, target)
        total = target.sum(axis=1)
        found = {
            "mIOU": np.nan_to_num(iou).mean(axis=1) if self.absent_is_zero else _mean(iou),
            "pixel_accuracy": _ratio(correct.sum(axis=1), total),
            "mean_accuracy": _mean(recall),
            "fw_iou": _ratio((np.nan_to_num(iou) * target).sum(axis=1), total),
            "iou": iou,
            "recall": recall,
            "precision": _ratio(correct, predicted),
        }
        if self.boundary is not None:
            found["boundary_iou"] = boundary_iou(summed(self.boundary))
            found["boundary_mIOU"] = _mean(found["boundary_iou"])
        if self.confidence is not None:
            found["calibration_error"] = expected_calibration_error(summed(self.confidence))
        return found

    def images_per_class(self) -> np.ndarray:
        """Return (C,) the number of images with each class in ground truth or prediction."""
        return np.asarray(((self.target + self.predicted) > 0).sum(axis=0))

    def resampled(self, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, np.ndarray]:
        """Return the scores of all resamples, (R,) and (R, C); the draws depend only on seed and number of images."""
        parts = [self.scores(weights) for weights in draw_weights(len(self.names), resamples, seed)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@dataclass(frozen=True)
class Interval:
    """Score, or difference of two, with its 95 % interval; both ends None without an interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """True if the interval does not contain 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


Estimates = dict[str, list[Interval]]
"""By score: one interval for OVERALL scores, C for BY_CLASS."""


def draw_weights(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield (r, n) float64 parts of the (R, n) weights: the count of each image in each resample."""
    rng = np.random.default_rng(seed)
    part = max(1, _MAX_WEIGHTS // images)
    for start in range(0, resamples, part):
        count = min(part, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)


def estimate(counts: ImageCounts, resampled: Values) -> Estimates:
    """Return scores with their intervals; no interval if a single image determines the score."""
    return _intervals(counts.scores(), resampled, len(counts.names), counts.images_per_class())


def difference(first: ImageCounts, second: ImageCounts, resampled: tuple[Values, Values]) -> Estimates:
    """Return second minus first with paired intervals; `resampled` are their resampled scores of the same seed.

    Scores that one of them lacks are left out. Raises DataError for different images or ground truth.
    """
    require_same_images(first, second)
    before, after = first.scores(), second.scores()
    shared = [key for key in before if key in after]
    values = {key: after[key] - before[key] for key in shared}
    draws = {key: resampled[1][key] - resampled[0][key] for key in shared}
    return _intervals(values, draws, len(first.names), np.maximum(first.images_per_class(), second.images_per_class()))


def require_same_images(first: ImageCounts, second: ImageCounts) -> None:
    """Raise DataError unless both have the same images with the same ground-truth pixels of each class."""
    if first.target.shape[1] != second.target.shape[1]:
        raise DataError(f"they have {first.target.shape[1]} and {second.target.shape[1]} classes")
    if first.names != second.names:
        only = [sorted(set(a.names) - set(b.names)) for a, b in ((first, second), (second, first))]
        example = (only[0] or only[1])[0]
        raise DataError(
            f"their images differ: {len(only[0])} are only in the first and {len(only[1])} only in the second, "
            f"{example} for example"
        )
    other = np.flatnonzero((first.target != second.target).any(axis=1))
    if len(other):
        raise DataError(
            f"the ground truth of {len(other)} images differs, {first.names[other[0]]} for example: another "
            "annotation, label map, ignored id or crop"
        )


def _intervals(values: Values, draws: Values, images: int, images_per_class: np.ndarray) -> Estimates:
    found: Estimates = {}
    for key, value in values.items():
        points = value.reshape(-1)  # R = 1: one number, or C
        lows, highs = np.full(len(points), np.nan), np.full(len(points), np.nan)
        columns = draws[key].reshape(len(draws[key]), -1)
        known = ~np.isnan(columns).all(axis=0) & ((images_per_class if key in BY_CLASS else images) > 1)
        if known.any():
            lows[known], highs[known] = np.nanpercentile(columns[:, known], [2.5, 97.5], axis=0)
        found[key] = [
            Interval(float(point), None if np.isnan(low) else float(low), None if np.isnan(high) else float(high))
            for point, low, high in zip(points, lows, highs)
        ]
    return found


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio


def _mean(values: np.ndarray) -> np.ndarray:
    """(R, C) -> (R,), mean over the values that are not NaN; NaN without any."""
    present = ~np.isnan(values)
    return _ratio(np.nan_to_num(values).sum(axis=1), present.sum(axis=1))
