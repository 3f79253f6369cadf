"""Scores with 95 % intervals over images, and differences of two evaluations of the same images.

Method: percentile bootstrap (Efron and Tibshirani 1993, chapter 13). As many images as there are are drawn with
replacement, their counts are summed, and the score of the sum is noted; the interval reaches from the 2.5th to the
97.5th percentile of RESAMPLES such scores. Differences are paired: both evaluations are drawn the same images.

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
# Weights of at most this many resamples and images exist at a time.
_WEIGHTS_AT_ONCE = 2**21

OVERALL = ("mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "boundary_mIOU", "calibration_error")
BY_CLASS = ("iou", "recall", "precision", "boundary_iou")
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ImageCounts:
    """What the scores of any set of images are made of, image by image.

    Attributes:
        names: of the images, n.
        correct, truth, predicted: (n, C) pixels that are of the class and predicted so, are of it, are predicted so.
        boundary: (n, C, 3), None where it was not counted.
        confidence: (n, 3, bins), None where it was not counted.
        absent_is_zero: whether a class that occurs nowhere counts as 0 in the mean IoU, as in `builtin`.
    """

    names: list[str]
    correct: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    boundary: np.ndarray | None = None
    confidence: np.ndarray | None = None
    absent_is_zero: bool = False

    @classmethod
    def of(cls, record: Record, absent_is_zero: bool = False) -> ImageCounts:
        """The counts of a record's images, in the order of their names."""
        shape = (len(record), record.num_classes)
        correct, truth, predicted = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        for index, name in enumerate(record.names):
            matrix = record.matrix(name)
            correct[index], truth[index], predicted[index] = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        details = record.detail("boundary"), record.detail("confidence")
        return cls(record.names, correct, truth, predicted, *details, absent_is_zero)

    def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Scores of the images together, each counted as often as (R, n) weights say; without weights once, R = 1.

        OVERALL scores are (R,), BY_CLASS (R, C); NaN where there is nothing to divide by. Those that need counts that
        were not made are left out.
        """
        weights = np.ones((1, len(self.names))) if weights is None else weights

        def summed(counts: np.ndarray) -> np.ndarray:
            # float64 holds sums of pixels exactly (up to 2^53), and multiplies matrices fast.
            flat = weights @ counts.reshape(len(counts), -1).astype(np.float64)
            return flat.reshape(len(weights), *counts.shape[1:])

        correct, truth, predicted = summed(self.correct), summed(self.truth), summed(self.predicted)
        iou = _ratio(correct, truth + predicted - correct)  # (R, C)
        recall = _ratio(correct, truth)
        total = truth.sum(axis=1)
        found = {
            "mIOU": np.nan_to_num(iou).mean(axis=1) if self.absent_is_zero else _mean(iou),
            "pixel_accuracy": _ratio(correct.sum(axis=1), total),
            "mean_accuracy": _mean(recall),
            "fw_iou": _ratio((np.nan_to_num(iou) * truth).sum(axis=1), total),
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
        """(C,) how many images hold each class in truth or prediction."""
        return np.asarray(((self.truth + self.predicted) > 0).sum(axis=0))

    def resampled(self, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, np.ndarray]:
        """The scores of that many resamples, (R,) and (R, C); the same draws for the same number of images."""
        parts = [self.scores(weights) for weights in draw_weights(len(self.names), resamples, seed)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of two, with its 95 % interval; both ends None where there is none."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


Estimates = dict[str, list[Interval]]
"""By score: one interval for OVERALL scores, C for those BY_CLASS."""


def draw_weights(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(r, n) float64 in parts, R rows in all: how often each resample of n images holds each of them."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)


def estimate(counts: ImageCounts, resampled: Values) -> Estimates:
    """Scores with their intervals; none where a single image decides, whose resamples are all itself."""
    return _intervals(counts.scores(), resampled, len(counts.names), counts.images_per_class())


def difference(first: ImageCounts, second: ImageCounts, resampled: tuple[Values, Values]) -> Estimates:
    """Second minus first, with paired intervals; `resampled` are theirs, of the same seed.

    Scores that one of them lacks are left out. Raises DataError where they are not of the same images and truth.
    """
    require_same_images(first, second)
    before, after = first.scores(), second.scores()
    shared = [key for key in before if key in after]
    values = {key: after[key] - before[key] for key in shared}
    draws = {key: resampled[1][key] - resampled[0][key] for key in shared}
    return _intervals(values, draws, len(first.names), np.maximum(first.images_per_class(), second.images_per_class()))


def require_same_images(first: ImageCounts, second: ImageCounts) -> None:
    """DataError unless both hold the same images with the same true pixels of each class."""
    if first.truth.shape[1] != second.truth.shape[1]:
        raise DataError(f"they have {first.truth.shape[1]} and {second.truth.shape[1]} classes")
    if first.names != second.names:
        only = [sorted(set(a.names) - set(b.names)) for a, b in ((first, second), (second, first))]
        example = (only[0] or only[1])[0]
        raise DataError(
            f"their images differ: {len(only[0])} are only in the first and {len(only[1])} only in the second, "
            f"{example} for example"
        )
    other = np.flatnonzero((first.truth != second.truth).any(axis=1))
    if len(other):
        raise DataError(
            f"the truth of {len(other)} images differs, {first.names[other[0]]} for example: another annotation, "
            "label map, ignored id or crop"
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
    """(R, C) -> (R,), over what is not NaN; NaN where nothing is."""
    present = ~np.isnan(values)
    return _ratio(np.nan_to_num(values).sum(axis=1), present.sum(axis=1))
