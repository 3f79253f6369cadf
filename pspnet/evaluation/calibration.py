"""Calibration: counts of confidence and accuracy per image, and the expected calibration error.

The confidence of a pixel is the probability of its predicted class (Guo et al. 2017, "On Calibration of Modern Neural
Networks", section 2). It is rounded to one of 1501 levels, so that counts of images add up exactly in any order.

Legend: N images, C classes, H, W image height and width, B = 15 bins of equal width over 0..1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

BINS = 15
LEVELS_PER_BIN = 100
_LEVELS = BINS * LEVELS_PER_BIN
# Logits are converted to probabilities in strips of about this size, so that no second full map exists.
_STRIP_BYTES = 2**26


@torch.no_grad()
def predict_with_confidence(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, H, W) RGB 0..255 -> (N, H, W) int64 class ids as from `predict_whole`, and their probabilities."""
    logits = model(images)  # (N, C, H, W)
    return logits.argmax(dim=1), confidence_of_logits(logits)


@torch.no_grad()
def confidence_of_logits(logits: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, H, W) float32, the largest softmax probability of each pixel."""
    rows = max(1, _STRIP_BYTES // (4 * logits[:, :, 0].numel()))
    strips = []
    for strip in logits.split(rows, dim=2):
        strip = strip.float()
        # exp(max - logsumexp) is the softmax of the largest logit
        strips.append((strip.amax(dim=1) - strip.logsumexp(dim=1)).exp_())
    return torch.cat(strips, dim=1)


def count_confidence(
    confidences: torch.Tensor, predictions: torch.Tensor, targets: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """(N, H, W) maps -> (N, 3, B) int64: pixels, correct pixels and sum of confidences (in 1/1500) per image and bin.

    Targets of num_classes or above (255 = ignore) are not counted.
    """
    images, bins = len(targets), 2 * (_LEVELS + 1)
    levels = (confidences.reshape(images, -1).float() * _LEVELS).round_().clamp_(0, _LEVELS).to(torch.int64)
    targets = targets.reshape(images, -1).to(torch.int64)
    correct = predictions.reshape(images, -1) == targets
    # One joint code per pixel, as in count_by_image: (image, correct, level), and a bin for ignored pixels.
    codes = torch.where(targets < num_classes, correct.to(torch.int64) * (_LEVELS + 1) + levels, bins)
    codes += torch.arange(images, device=codes.device).unsqueeze(1) * (bins + 1)
    counts = torch.bincount(codes.reshape(-1), minlength=images * (bins + 1)).reshape(images, bins + 1)
    counts = counts[:, :bins].reshape(images, 2, _LEVELS + 1)
    pixels = counts.sum(dim=1)  # (N, 1501)
    sums = pixels * torch.arange(_LEVELS + 1, device=codes.device)
    return torch.stack([_into_bins(pixels), _into_bins(counts[:, 1]), _into_bins(sums)], dim=1)


def _into_bins(values: torch.Tensor) -> torch.Tensor:
    """(N, 1501) by level -> (N, B) by bin; a confidence of exactly 1 belongs to the last bin."""
    folded = values[:, :_LEVELS].reshape(len(values), BINS, LEVELS_PER_BIN).sum(dim=2)
    folded[:, -1] += values[:, _LEVELS]
    return folded


def expected_calibration_error(counts: np.ndarray) -> np.ndarray:
    """(..., 3, B) counts -> (...,): mean over pixels of |accuracy - mean confidence| of their bin; 0 without pixels.

    Source: Guo et al. 2017, equation 3.
    """
    pixels, correct, sums = (counts[..., row, :].astype(np.float64) for row in range(3))
    gaps = np.abs(correct - sums / _LEVELS).sum(axis=-1)
    total = pixels.sum(axis=-1)
    error: np.ndarray = np.divide(gaps, total, out=np.zeros_like(gaps), where=total > 0)
    return error


def reliability(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3, B) counts -> accuracy (B,) and mean confidence (B,) of each bin, NaN for an empty bin."""
    pixels = counts[0].astype(np.float64)
    empty = np.full(counts.shape[-1], np.nan)
    accuracy = np.divide(counts[1], pixels, out=empty.copy(), where=pixels > 0)
    confidence = np.divide(counts[2] / _LEVELS, pixels, out=empty.copy(), where=pixels > 0)
    return accuracy, confidence
