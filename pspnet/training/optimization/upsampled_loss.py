"""Cross-entropy of head-size logits against image-size targets, without storing image-size logits.

Bilinear up-sampling is a product with one fixed matrix for the rows and one for the columns. The forward pass
up-samples and scores the logits strip by strip of rows and maps the gradient back to the head's size, so that only one
gradient of the head's size is stored. The sums equal those of up-sampling first, in another order.

Shape letters:
    N  images                          K  classes
    h, w  rows and columns at the head's size; H, W at the image's
    r  rows of a strip
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pspnet.classes import IGNORE_INDEX

# Elements of an up-sampled strip: fits a CPU core's cache, or fills a GPU.
_STRIP = {"cpu": 2**20, "cuda": 2**24}


def upsampled_cross_entropy(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None, align_corners: bool
) -> Tensor:
    """Return the sum of the weighted cross-entropies of all scored pixels, as if `logits` were up-sampled first.

    Args:
        logits: (N, K, h, w), float32 or float64.
        targets: (N, H, W) class ids as int64, 255 = ignored.
        class_weights: (K,), or None for 1 everywhere.

    Returns a scalar of the logits' dtype, differentiable once with respect to the logits.
    """
    result: Tensor = _UpsampledCrossEntropy.apply(logits, targets, class_weights, align_corners)
    return result


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, class_weights: Tensor | None, align_corners: bool) -> Tensor:
        (count, classes, h, w), (height, width) = logits.shape, targets.shape[-2:]
        rows = interpolation(height, h, align_corners, logits.dtype, logits.device)  # (H, h)
        columns = interpolation(width, w, align_corners, logits.dtype, logits.device)  # (W, w)
        budget = _STRIP.get(logits.device.type, _STRIP["cpu"])
        images = max(1, budget // (classes * height * width))
        strip = max(1, min(height, budget // (classes * width)))
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        parts = []
        for first in range(0, count, images):
            chosen = logits[first : first + images].contiguous()  # (n, K, h, w)
            wide = torch.mm(chosen.view(-1, w), columns.t()).view(-1, h, width)  # (n * K, h, W)
            change = torch.zeros_like(wide)  # gradient with respect to `wide`
            for top in range(0, height, strip):
                part = rows[top : top + strip].unsqueeze(0).expand(len(wide), -1, -1)  # (n * K, r, h)
                full = torch.bmm(part, wide).view(len(chosen), classes, -1, width)  # (n, K, r, W)
                loss, by_full = _score(full, targets[first : first + images, top : top + strip], class_weights)
                total += loss
                change.baddbmm_(part.transpose(1, 2), by_full.view(-1, by_full.shape[2], width))  # (n * K, h, W)
            parts.append(torch.mm(change.view(-1, width), columns).view(-1, classes, h, w))  # (n, K, h, w)
        gradient = torch.cat(parts)  # (N, K, h, w)
        ctx.save_for_backward(gradient)
        return total.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None


def _score(logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """(n, K, r, W) logits, (n, r, W) targets -> the sum of the losses (float64), and its gradient (n, K, r, W)."""
    scored = targets != IGNORE_INDEX  # (n, r, W)
    labels = targets.masked_fill(~scored, 0)  # (n, r, W)
    weights = scored.to(logits.dtype) if class_weights is None else class_weights[labels] * scored  # (n, r, W)
    log_probabilities = F.log_softmax(logits, dim=1)  # (n, K, r, W)
    labels, weights = labels.unsqueeze(1), weights.unsqueeze(1)  # (n, 1, r, W)
    losses = -log_probabilities.gather(1, labels) * weights  # (n, 1, r, W)
    gradient = log_probabilities.exp_().mul_(weights)  # (n, K, r, W)
    gradient.scatter_(1, labels, gradient.gather(1, labels) - weights)
    return losses.sum(dtype=torch.float64), gradient


@lru_cache(maxsize=64)
def interpolation(size: int, cells: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (size, cells): the weight of each cell at every position of one axis in bilinear up-sampling."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(cells, dtype=torch.float64).unsqueeze(0)  # (1, cells, cells): cell, position
        weights = F.interpolate(unit, size, mode="linear", align_corners=align_corners)[0]  # (cells, size)
        return weights.t().contiguous().to(device, dtype)
