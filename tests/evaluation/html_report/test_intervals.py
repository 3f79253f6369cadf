"""Bootstrap scores, intervals and paired differences against plain loops and cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pspnet.errors import DataError
from pspnet.evaluation.boundary import boundary_iou
from pspnet.evaluation.calibration import expected_calibration_error
from pspnet.evaluation.html_report import intervals as statistics
from pspnet.evaluation.html_report.intervals import ImageCounts, Interval, difference, draw_weights, estimate
from pspnet.evaluation.metrics import Scores
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.protocols.builtin import builtin_scores

CLASSES = 4


def record_of(seed: int = 0, images: int = 6, absent: int | None = 3) -> Record:
    """Random matrices with the same ground truth for every seed; class `absent` does not occur."""
    target, rng = np.random.default_rng(99), np.random.default_rng(seed)
    record = Record(CLASSES)
    for index in range(images):
        matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
        for label in range(CLASSES):
            pixels = int(target.integers(1, 50))
            if label != absent:
                others = [other for other in range(CLASSES) if other != absent]
                matrix[label, others] = rng.multinomial(pixels, [1 / len(others)] * len(others))
        boundary = np.sort(rng.integers(0, 20, (CLASSES, 3)))[:, ::-1]
        confidence = rng.integers(0, 1500, (3, 15)) * np.array([[100], [50], [75000]])
        record.add(f"image {index}", matrix, details={"boundary": boundary, "confidence": confidence})
    return record


def test_scores_equal_those_of_the_summed_matrices() -> None:
    record = record_of()
    counts = ImageCounts.of(record)
    found, expected = counts.scores(), Scores.from_counts(record.total())
    for key in ("mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou"):
        assert found[key].shape == (1,)
        assert found[key][0] == pytest.approx(getattr(expected, key), abs=1e-15)
    assert [None if np.isnan(value) else value for value in found["iou"][0]] == [
        None if value is None else pytest.approx(value, abs=1e-15) for value in expected.per_class_iou
    ]
    total = record.total()
    assert found["recall"][0, 1] == total[1, 1] / total[1].sum()
    assert found["precision"][0, 1] == total[1, 1] / total[:, 1].sum()
    boundary = record.detail("boundary").sum(axis=0)
    np.testing.assert_allclose(found["boundary_iou"][0], boundary_iou(boundary))
    assert found["boundary_mIOU"][0] == pytest.approx(np.nanmean(boundary_iou(boundary)))
    error = expected_calibration_error(record.detail("confidence").sum(axis=0))
    assert found["calibration_error"][0] == pytest.approx(float(error))
    with_zero = ImageCounts.of(record, absent_is_zero=True).scores()
    assert with_zero["mIOU"][0] == pytest.approx(builtin_scores(record.total()).mIOU, abs=1e-15)


def test_a_resample_equals_the_score_of_its_images() -> None:
    record = record_of()
    counts = ImageCounts.of(record)
    weights = np.concatenate(list(draw_weights(6, 5, seed=3)))
    assert weights.sum(axis=1).tolist() == [6.0] * 5
    found = counts.scores(weights)
    for row, weight in enumerate(weights):
        total = sum(int(times) * record.matrix(name) for times, name in zip(weight, record.names))
        expected = Scores.from_counts(total)
        assert found["mIOU"][row] == pytest.approx(expected.mIOU, abs=1e-15)
        assert found["fw_iou"][row] == pytest.approx(expected.fw_iou, abs=1e-15)


def test_draws_are_seeded_and_independent_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_weights(7, 40, seed=1)))
    monkeypatch.setattr(statistics, "_MAX_WEIGHTS", 7 * 9)
    parts = list(draw_weights(7, 40, seed=1))
    assert [len(part) for part in parts] == [9, 9, 9, 9, 4]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (np.concatenate(list(draw_weights(7, 40, seed=2))) != whole).any()


def test_identical_images_give_intervals_of_width_0() -> None:
    record = Record(2)
    for name in "abcde":
        record.add(name, np.array([[3, 1], [1, 5]]))
    counts = ImageCounts.of(record)
    found = estimate(counts, counts.resampled(200))
    assert found["mIOU"] == [
        Interval(pytest.approx((3 / 5 + 5 / 7) / 2), pytest.approx(9.2 / 14), pytest.approx(9.2 / 14))
    ]
    assert found["pixel_accuracy"][0] == Interval(0.8, 0.8, 0.8)
    assert [interval.low == interval.high == interval.value for interval in found["iou"]] == [True, True]
    assert "boundary_iou" not in found
    assert "calibration_error" not in found


def test_the_interval_of_a_mean_matches_the_binomial() -> None:
    """Half of 100 images correct: the accuracy of a resample is binomial with n = 100."""
    record = Record(2)
    for index in range(100):
        record.add(f"{index:03d}", np.array([[10, 0], [0, 0]]) if index < 50 else np.array([[0, 10], [0, 0]]))
    counts = ImageCounts.of(record)
    accuracy = estimate(counts, counts.resampled())["pixel_accuracy"][0]
    assert accuracy.value == 0.5
    assert accuracy.low == pytest.approx(0.4, abs=0.021)  # the binomial's 2.5th percentile is 0.40
    assert accuracy.high == pytest.approx(0.6, abs=0.021)


def test_a_single_image_has_no_interval() -> None:
    single = ImageCounts.of(record_of(images=1))
    found = estimate(single, single.resampled(50))
    assert found["mIOU"][0].low is None
    assert found["mIOU"][0].value > 0
    record = Record(2)
    record.add("a", np.array([[5, 1], [0, 0]]))
    record.add("b", np.array([[5, 0], [0, 0]]))
    counts = ImageCounts.of(record)
    ious = estimate(counts, counts.resampled(50))["iou"]
    assert ious[0].low is not None
    assert (ious[1].low, ious[1].high) == (None, None)  # only image a has class 1, in its prediction


def test_an_absent_class_has_neither_score_nor_interval() -> None:
    counts = ImageCounts.of(record_of())
    with np.errstate(all="raise"):
        absent = estimate(counts, counts.resampled(50))["iou"][3]
    assert np.isnan(absent.value)
    assert (absent.low, absent.high, absent.excludes_zero) == (None, None, False)


def test_differences_are_paired() -> None:
    first, second = Record(2), Record(2)
    rng = np.random.default_rng(0)
    for index in range(30):
        right = int(rng.integers(0, 90))
        first.add(str(index), np.array([[right, 100 - right], [0, 0]]))
        second.add(str(index), np.array([[right + 10, 90 - right], [0, 0]]))
    counts = [ImageCounts.of(record) for record in (first, second)]
    draws = [one.resampled(300) for one in counts]
    found = difference(counts[0], counts[1], (draws[0], draws[1]))["pixel_accuracy"][0]
    # Every image gains exactly 10 of 100 pixels, so every resample does too.
    assert (found.value, found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert found.excludes_zero
    wide = estimate(counts[0], draws[0])["pixel_accuracy"][0]
    assert wide.high - wide.low > 0.1
    same = difference(counts[0], counts[0], (draws[0], draws[0]))
    assert all(one.value == one.low == one.high == 0 and not one.excludes_zero for one in same["pixel_accuracy"])


def test_other_images_are_rejected() -> None:
    counts = ImageCounts.of(record_of())
    draws = counts.resampled(5)
    fewer = record_of(images=5)
    other = ImageCounts.of(fewer)
    with pytest.raises(DataError, match="1 are only in the first and 0 only in the second, image 5 for example"):
        difference(counts, other, (draws, draws))
    changed = record_of()
    changed.add("image 2", changed.matrix("image 2") + np.eye(CLASSES, dtype=np.int64))
    with pytest.raises(DataError, match="the ground truth of 1 images differs, image 2 for example"):
        difference(counts, ImageCounts.of(changed), (draws, draws))
    with pytest.raises(DataError, match="they have 4 and 2 classes"):
        difference(counts, ImageCounts.of(Record(2)), (draws, draws))
    later = ImageCounts.of(record_of(seed=7))
    assert difference(counts, later, (draws, later.resampled(5)))["mIOU"][0].value != 0
