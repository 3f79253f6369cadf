"""Scores against numbers computed by hand, a slow loop, and torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pspnet.evaluation.metrics import (
    ConfusionMatrix,
    Scores,
    _count_by_scattering,
    constant_scores,
    count_by_image,
    format_scores,
)


def confusion_of(predictions: list[list[int]], targets: list[list[int]], classes: int) -> ConfusionMatrix:
    confusion = ConfusionMatrix(classes)
    confusion.update(torch.tensor(predictions), torch.tensor(targets, dtype=torch.uint8))
    return confusion


def random_masks(classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(4, 30, 40) predictions, three in four pixels correct, and targets with a tenth ignored."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, (4, 30, 40))
    predictions = np.where(rng.random(targets.shape) < 0.75, targets, rng.integers(0, classes, targets.shape))
    targets[rng.random(targets.shape) < 0.1] = 255
    return torch.from_numpy(predictions), torch.from_numpy(targets.astype(np.uint8))


def slow_scores(predictions: np.ndarray, targets: np.ndarray, classes: int) -> dict[str, float]:
    """Scores by definition, one class at a time, without a confusion matrix."""
    scored = targets != 255
    predictions, targets = predictions[scored], targets[scored]
    ious, accuracies, weighted = [], [], 0.0
    for index in range(classes):
        predicted, true = predictions == index, targets == index
        union = int((predicted | true).sum())
        if union:
            ious.append(int((predicted & true).sum()) / union)
            weighted += ious[-1] * int(true.sum()) / len(targets)
        if true.any():
            accuracies.append(float(predicted[true].mean()))
    return {
        "mIOU": math.fsum(ious) / len(ious),
        "pixel_accuracy": float((predictions == targets).mean()),
        "mean_accuracy": math.fsum(accuracies) / len(accuracies),
        "fw_iou": weighted,
    }


# Class 2 is absent, class 3 only predicted; two pixels are ignored, one of them predicted as class 2.
PREDICTIONS = [[0, 0, 1, 1, 1], [1, 0, 3, 2, 0]]
TARGETS = [[0, 0, 0, 1, 1], [1, 1, 1, 255, 255]]


def test_the_matrix_by_hand() -> None:
    confusion = confusion_of(PREDICTIONS, TARGETS, 4)
    assert confusion.counts.dtype == torch.int64
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [1, 3, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_scores_by_hand() -> None:
    scores = confusion_of(PREDICTIONS, TARGETS, 4).scores()
    assert scores.per_class_iou == (2 / 4, 3 / 6, None, 0.0)
    assert scores.mIOU == pytest.approx((0.5 + 0.5 + 0.0) / 3, rel=1e-15)
    assert scores.pixel_accuracy == 5 / 8
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 3 / 5) / 2, rel=1e-15)
    assert scores.fw_iou == pytest.approx(0.5, rel=1e-15)
    assert scores.pixels == 8


def test_three_classes_with_one_absent() -> None:
    scores = confusion_of([[0, 0, 2, 2]], [[0, 2, 2, 255]], 3).scores()
    assert scores.per_class_iou == (0.5, None, 0.5)
    assert scores.mIOU == 0.5
    assert scores.pixel_accuracy == pytest.approx(2 / 3, rel=1e-15)
    assert scores.mean_accuracy == 0.75


def test_updates_add_up() -> None:
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    predictions, targets = random_masks(5, seed=0)
    whole.update(predictions, targets)
    for prediction, target in zip(predictions, targets):
        parts.update(prediction, target)
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == int((targets != 255).sum())


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_masks_of_any_integer_type(kind: torch.dtype) -> None:
    predictions, targets = random_masks(21, seed=1)
    expected, confusion = ConfusionMatrix(21), ConfusionMatrix(21)
    expected.update(predictions, targets)
    confusion.update(predictions.to(kind), targets.to(kind))
    assert torch.equal(confusion.counts, expected.counts)


def test_the_largest_number_of_classes() -> None:
    confusion = ConfusionMatrix(254)
    confusion.update(torch.tensor([253, 0, 253]), torch.tensor([253, 253, 255], dtype=torch.uint8))
    assert confusion.counts[253, 253] == confusion.counts[253, 0] == 1
    assert int(confusion.counts.sum()) == 2


@pytest.mark.parametrize("classes", [2, 7, 21])
def test_random_masks_equal_the_definitions(classes: int) -> None:
    predictions, targets = random_masks(classes, seed=classes)
    confusion = ConfusionMatrix(classes)
    confusion.update(predictions, targets)
    scores = confusion.scores()
    for name, value in slow_scores(predictions.numpy(), targets.numpy(), classes).items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-12), name


@pytest.mark.slow
def test_random_masks_equal_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    predictions, targets = random_masks(9, seed=3)
    predictions[predictions == 4] = 5  # class 4 is absent
    targets[targets == 4] = 5
    confusion = ConfusionMatrix(9)
    confusion.update(predictions, targets)
    arguments = (predictions, targets.long())
    theirs = functional.multiclass_confusion_matrix(*arguments, num_classes=9, ignore_index=255)
    assert torch.equal(confusion.counts, theirs)
    scores = confusion.scores()
    # Their ratios are float32.
    jaccard = functional.multiclass_jaccard_index(*arguments, num_classes=9, ignore_index=255, average="none")
    ours = [0.0 if value is None else value for value in scores.per_class_iou]
    assert ours == pytest.approx(jaccard.tolist(), abs=1e-6)
    for average, value in (("micro", scores.pixel_accuracy), ("macro", scores.mean_accuracy)):
        accuracy = functional.multiclass_accuracy(*arguments, num_classes=9, ignore_index=255, average=average)
        assert value == pytest.approx(float(accuracy), abs=1e-6)


@pytest.mark.parametrize(("classes", "images"), [(2, 1), (5, 4), (150, 3)])
def test_each_image_is_counted_separately(classes: int, images: int) -> None:
    predictions, targets = random_masks(classes, seed=classes)
    predictions, targets = predictions[:images], targets[:images]
    counts = count_by_image(predictions, targets, classes)
    assert counts.dtype == torch.int64
    assert counts.shape == (images, classes, classes)
    for image in range(images):
        alone = ConfusionMatrix(classes)
        alone.update(predictions[image], targets[image])
        assert torch.equal(counts[image], alone.counts)
        assert int(counts[image].sum()) == int((targets[image] != 255).sum())


@pytest.mark.parametrize("seed", range(5))
def test_random_confusion_equals_torchmetrics_image_by_image(seed: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    predictions, targets = random_masks(13, seed)
    for ours, prediction, target in zip(count_by_image(predictions, targets, 13), predictions, targets.long()):
        theirs = functional.multiclass_confusion_matrix(prediction, target, num_classes=13, ignore_index=255)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("classes", "kind"), [(2, torch.uint8), (13, torch.int64), (180, torch.uint8), (254, torch.uint8)]
)
def test_the_gpu_implementation_gives_the_same_counts(classes: int, kind: torch.dtype) -> None:
    predictions, targets = (masks.reshape(4, -1) for masks in random_masks(classes, seed=classes))
    ours = _count_by_scattering(predictions.to(kind), targets, classes)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, count_by_image(predictions, targets, classes))


@pytest.mark.parametrize("classes", [2, 180, 181, 254])
@pytest.mark.parametrize("count", [count_by_image, _count_by_scattering])
def test_predictions_on_ignored_pixels_do_not_matter(classes: int, count: Any) -> None:
    # 180 is the largest number of classes with 16-bit codes; the largest code must not wrap around.
    targets = torch.tensor([[255, 254, classes - 1, 255]], dtype=torch.uint8)
    predictions = torch.tensor([[255, 0, classes - 1, classes - 1]], dtype=torch.uint8)
    counts = count(predictions, targets, classes)
    expected = torch.zeros(1, classes, classes, dtype=torch.int64)
    expected[0, classes - 1, classes - 1] = 1
    assert torch.equal(counts, expected)


def test_no_pixels_and_non_contiguous_layouts() -> None:
    empty = torch.zeros(2, 0, 5, dtype=torch.uint8)
    assert torch.equal(count_by_image(empty, empty, 3), torch.zeros(2, 3, 3, dtype=torch.int64))
    predictions, targets = random_masks(7, seed=4)
    turned = count_by_image(predictions.transpose(1, 2), targets.transpose(1, 2), 7)
    assert torch.equal(turned, count_by_image(predictions, targets, 7))


def test_the_masks_are_not_modified() -> None:
    for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
        predictions, targets = random_masks(5, seed=6)
        predictions, targets = predictions.to(kind), targets.to(kind)
        before = predictions.clone(), targets.clone()
        for count in (count_by_image, _count_by_scattering):
            count(predictions.reshape(4, -1), targets.reshape(4, -1), 5)
            assert torch.equal(predictions, before[0])
            assert torch.equal(targets, before[1])


def test_counts_stay_exact_beyond_float32() -> None:
    counts = np.array([[2**40 + 1, 1], [0, 3]], dtype=np.int64)
    scores = Scores.from_counts(counts)
    assert scores.pixels == 2**40 + 5
    assert scores.per_class_iou == ((2**40 + 1) / (2**40 + 2), 3 / 4)


def test_no_scored_pixels_give_0_and_not_nan() -> None:
    scores = confusion_of([[0, 1]], [[255, 255]], 3).scores()
    assert scores == Scores(0.0, 0.0, 0.0, 0.0, (None, None, None), 0)


def test_perfect_predictions_give_1() -> None:
    scores = Scores.from_counts(np.diag([5, 7, 0]))
    assert (scores.mIOU, scores.pixel_accuracy, scores.mean_accuracy, scores.fw_iou) == (1.0, 1.0, 1.0, 1.0)


def test_json_keys() -> None:
    content = confusion_of(PREDICTIONS, TARGETS, 4).scores().to_json(("sky", "road", "pole", "car"))
    assert list(content) == ["mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "per_class_iou", "pixels"]
    assert content["per_class_iou"] == {"sky": 0.5, "road": 0.5, "pole": None, "car": 0.0}
    assert content["pixels"] == 8
    assert type(content["pixels"]) is int
    assert {type(content[key]) for key in ("mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou")} == {float}


def test_the_constant_predictor_by_hand() -> None:
    # 6 pixels of class 0, 3 of class 1, 1 of class 2: always predicting 0.
    counts = np.array([[2, 3, 1], [0, 3, 0], [0, 0, 1]], dtype=np.int64)
    scores = constant_scores(counts)
    assert scores.per_class_iou == (0.6, 0.0, 0.0)
    assert scores.mIOU == pytest.approx(0.2, rel=1e-15)
    assert scores.pixel_accuracy == 0.6
    assert scores.fw_iou == pytest.approx(0.36, rel=1e-15)
    assert counts.tolist() == [[2, 3, 1], [0, 3, 0], [0, 0, 1]]  # not modified


def test_the_table_shows_percent_and_absent_classes() -> None:
    scores = Scores(0.51234, 0.9, 0.75, 1.0, (0.12345, None, 1.0), 1234)
    table = format_scores(scores, ("sky", "a_rather_long_name", "car"), images=7)
    assert table.splitlines() == [
        "class               IoU %",
        "sky                  12.3",
        "a_rather_long_name      -",
        "car                 100.0",
        "-------------------------",
        "mIoU                 51.2",
        "pixel accuracy       90.0",
        "mean accuracy        75.0",
        "fw IoU              100.0",
        "7 images, 1234 scored pixels",
    ]
