"""Scores from an int64 confusion matrix.

Legend: C number of classes. Rows of the matrix are the truth, columns the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels, exact in int64, kept on the device that the masks are on."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)  # (C, C)

    def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
        """Add masks of one shape. Targets of num_classes or above (255 = ignore) are not scored."""
        self.counts += count_by_image(predictions.reshape(1, -1), targets.reshape(1, -1), self.num_classes)[0]

    def scores(self) -> Scores:
        """The scores of all that was added so far."""
        return Scores.from_counts(self.counts.cpu().numpy())


def count_by_image(predictions: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, ...) masks of one shape -> (N, C, C) int64, the confusion matrix of each image, on the masks' device.

    Targets of num_classes or above (255 = ignore) are not scored; predictions must be below num_classes where they are.
    """
    images, cells = len(targets), num_classes * num_classes
    targets = targets.reshape(images, -1).to(torch.int64)  # (N, pixels)
    predictions = predictions.reshape(images, -1).to(torch.int64)  # (N, pixels)
    # One joint code a pixel; what is ignored falls into a bin of its own behind the matrix, which is cheaper than
    # selecting the other pixels first. Each image has its own range of codes.
    codes = torch.where(targets < num_classes, targets * num_classes + predictions, cells)
    if images > 1:
        codes += torch.arange(images, device=codes.device).unsqueeze(1) * (cells + 1)
    counts = torch.bincount(codes.reshape(-1), minlength=images * (cells + 1)).reshape(images, cells + 1)
    return counts[:, :cells].reshape(images, num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Ratios in double precision, 0..1. A class that occurs neither in truth nor prediction has IoU None and is left
    out of the means; a mean over no class at all is 0.

    Attributes:
        mIOU: mean over classes of intersection / union (Long et al. 2015, section 5).
        pixel_accuracy: correctly labelled share of the scored pixels.
        mean_accuracy: mean over the true classes of their correctly labelled share.
        fw_iou: IoU weighted by each class's share of the true pixels.
        per_class_iou: IoU of each class, None where absent.
        pixels: number of scored pixels.
    """

    mIOU: float  # noqa: N815 - the built-in algorithm's name of this metric
    pixel_accuracy: float
    mean_accuracy: float
    fw_iou: float
    per_class_iou: tuple[float | None, ...]
    pixels: int

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> Scores:
        """Scores of a (C, C) int64 confusion matrix."""
        correct = np.diag(counts).astype(np.float64)  # (C,)
        truth = counts.sum(axis=1).astype(np.float64)  # (C,)
        union = truth + counts.sum(axis=0) - correct  # (C,)
        total = truth.sum()
        present, true = union > 0, truth > 0
        iou = np.divide(correct, union, out=np.zeros_like(correct), where=present)
        accuracy = np.divide(correct, truth, out=np.zeros_like(correct), where=true)
        return cls(
            mIOU=float(iou[present].mean()) if present.any() else 0.0,
            pixel_accuracy=float(correct.sum() / total) if total else 0.0,
            mean_accuracy=float(accuracy[true].mean()) if true.any() else 0.0,
            fw_iou=float((iou * truth).sum() / total) if total else 0.0,
            per_class_iou=tuple(float(value) if there else None for value, there in zip(iou, present)),
            pixels=int(total),
        )

    def to_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """The content of metrics.json, but for the number of images."""
        return {
            "mIOU": self.mIOU,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "fw_iou": self.fw_iou,
            "per_class_iou": dict(zip(class_names, self.per_class_iou)),
            "pixels": self.pixels,
        }


def constant_scores(counts: np.ndarray) -> Scores:
    """The scores that the best constant predictor (always the most frequent true class) would have had."""
    constant = np.zeros_like(counts)
    constant[:, int(counts.sum(axis=1).argmax())] = counts.sum(axis=1)
    return Scores.from_counts(constant)
