"""Confidence counts and calibration error against plain loops and cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pspnet.evaluation import calibration
from pspnet.evaluation.calibration import (
    BINS,
    confidence_of_logits,
    count_confidence,
    expected_calibration_error,
    predict_with_confidence,
    reliability,
)
from pspnet.evaluation.protocols.whole import predict_whole


@pytest.mark.parametrize("strip_bytes", [1, 2**26])
def test_confidence_is_the_largest_softmax_probability(strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_STRIP_BYTES", strip_bytes)
    logits = 6 * torch.randn(2, 5, 7, 9)
    found = confidence_of_logits(logits)
    assert found.shape == (2, 7, 9)
    torch.testing.assert_close(found, logits.softmax(dim=1).amax(dim=1))
    assert confidence_of_logits(logits.bfloat16()).dtype == torch.float32


def test_masks_equal_predict_whole() -> None:
    model, images = nn.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 8, 8) * 255
    masks, confidences = predict_with_confidence(model, images)
    assert torch.equal(masks, predict_whole(model, images))
    assert ((confidences > 0.25) & (confidences <= 1)).all()


def test_counts_by_hand() -> None:
    confidences = torch.tensor([[[0.0, 0.05, 0.5, 0.5], [0.97, 1.0, 1.0, 0.99]]])
    predictions = torch.tensor([[[0, 1, 1, 0], [1, 1, 0, 0]]])
    targets = torch.tensor([[[0, 0, 1, 1], [1, 1, 1, 255]]])
    counts = count_confidence(confidences, predictions, targets, 2)[0]
    pixels, correct, sums = counts.tolist()
    assert pixels == [2, *[0] * 6, 2, *[0] * 6, 3]
    assert correct == [1, *[0] * 6, 1, *[0] * 6, 2]
    assert sums == [75, *[0] * 6, 1500, *[0] * 6, 1455 + 1500 + 1500]
    gaps = abs(1 - 0.05) + abs(1 - 1.0) + abs(2 - 2.97)
    assert expected_calibration_error(counts.numpy()) == pytest.approx(gaps / 7, abs=1e-12)
    accuracy, confidence = reliability(counts.numpy())
    assert accuracy[[0, 7, 14]] == pytest.approx([0.5, 0.5, 2 / 3])
    assert confidence[[0, 7, 14]] == pytest.approx([0.025, 0.5, 0.99])
    assert np.isnan(accuracy[1])
    assert np.isnan(confidence[1])


def test_counts_equal_a_loop_over_pixels_for_each_image() -> None:
    confidences, classes = torch.rand(3, 6, 7), 4
    predictions, targets = torch.randint(0, classes, (3, 6, 7)), torch.randint(0, classes, (3, 6, 7))
    targets[torch.rand(3, 6, 7) < 0.2] = 255
    counts = count_confidence(confidences, predictions, targets, classes)
    assert counts.shape == (3, 3, BINS)
    for image in range(3):
        expected = np.zeros((3, BINS), dtype=np.int64)
        values = zip(*(part[image].reshape(-1).tolist() for part in (confidences, predictions, targets)))
        for confidence, prediction, target in values:
            if target < classes:
                level = round(confidence * 1500)
                expected[:, min(level // 100, BINS - 1)] += [1, int(prediction == target), level]
        np.testing.assert_array_equal(counts[image].numpy(), expected)


def test_perfect_calibration_and_empty_counts_have_no_error() -> None:
    confidences = torch.full((1, 10, 10), 0.8)
    targets = torch.zeros(1, 10, 10, dtype=torch.int64)
    predictions = targets.clone()
    predictions[0, :2] = 1
    assert expected_calibration_error(count_confidence(confidences, predictions, targets, 2).numpy())[0] == 0.0
    assert expected_calibration_error(count_confidence(confidences, targets, targets, 2).numpy())[0] == (
        pytest.approx(0.2)
    )
    nothing = count_confidence(confidences, predictions, torch.full_like(targets, 255), 2).numpy()
    assert nothing.sum() == 0
    assert expected_calibration_error(nothing)[0] == 0.0
