"""Scores from an int64 confusion matrix, and their text table.

Legend: C number of classes. Rows of the matrix are the truth, columns the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Codes of ignored pixels: the number of classes squared, and the predictions 0..255 on top of it.
_CODES_BEHIND = 256
_TABLES = 8


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

    Both hold 0..255. Targets of num_classes or above (255 = ignore) are not scored; predictions must be below
    num_classes where they are.
    """
    images = len(targets)
    predictions, targets = predictions.reshape(images, -1), targets.reshape(images, -1)  # (N, pixels)
    count = _count_on_cpu if targets.device.type == "cpu" else _count_by_scattering
    return count(predictions, targets, num_classes)


def _joint_codes(
    predictions: torch.Tensor, targets: torch.Tensor, num_classes: int, dtype: torch.dtype
) -> torch.Tensor:
    """True class * C + predicted class of every pixel. What is ignored counts as class C: its codes lie behind the
    matrix, which is cheaper than selecting the other pixels first."""
    codes = targets.clamp(max=num_classes).to(dtype)
    return codes.mul_(num_classes).add_(predictions)


def _count_on_cpu(predictions: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, pixels) -> (N, C, C). Image by image, and in the smallest type that holds the codes."""
    cells, codes = num_classes * num_classes, num_classes * num_classes + _CODES_BEHIND
    dtype = torch.int16 if codes <= torch.iinfo(torch.int16).max else torch.int32
    counts = [
        torch.bincount(_joint_codes(prediction, target, num_classes, dtype), minlength=codes)[:cells]
        for prediction, target in zip(predictions, targets)
    ]
    return torch.stack(counts).reshape(-1, num_classes, num_classes)


def _count_by_scattering(predictions: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, pixels) -> (N, C, C) in one pass without waiting for the device, as bincount does to learn the largest code.

    Neighbouring pixels mostly have one code, and threads that add to one number wait for each other: so every image
    has several tables, which pixels use in turn.
    """
    images, pixels = targets.shape
    length = num_classes * num_classes + _CODES_BEHIND
    device = targets.device
    codes = _joint_codes(predictions, targets, num_classes, torch.int64)
    codes += length * (torch.arange(pixels, device=device) % _TABLES)
    tables = torch.zeros(images, _TABLES * length, dtype=torch.int64, device=device)
    tables.scatter_add_(1, codes, torch.ones((), dtype=torch.int64, device=device).expand_as(codes))
    counts = tables.reshape(images, _TABLES, length).sum(dim=1)  # (N, length)
    return counts[:, : num_classes * num_classes].reshape(images, num_classes, num_classes)


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


def format_scores(scores: Scores, class_names: Sequence[str], images: int) -> str:
    """A table of the scores in percent, the classes in the order of their ids."""
    width = max(len(name) for name in (*class_names, "mean accuracy"))
    lines = [f"{'class':<{width}}  IoU %"]
    for name, iou in zip(class_names, scores.per_class_iou):
        lines.append(f"{name:<{width}}  " + ("    -" if iou is None else f"{100 * iou:5.1f}"))
    lines.append("-" * (width + 7))
    for name, value in (
        ("mIoU", scores.mIOU),
        ("pixel accuracy", scores.pixel_accuracy),
        ("mean accuracy", scores.mean_accuracy),
        ("fw IoU", scores.fw_iou),
    ):
        lines.append(f"{name:<{width}}  {100 * value:5.1f}")
    lines.append(f"{images} images, {scores.pixels} scored pixels")
    return "\n".join(lines)
