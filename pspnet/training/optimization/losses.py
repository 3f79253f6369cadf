"""Segmentation losses. All take logits (N, C, H, W) and targets (N, H, W) of class ids with 255 = ignore.

Legend: N images, C classes, H, W size; K number of scored pixels.

`SegmentationLoss` returns a mean and `loss_weight` its weight. Together they give the mean over several mini-batches or
processes, so that gradient accumulation equals one large batch: exactly for cross_entropy; the other losses select or
count their pixels within a mini-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pspnet.classes import IGNORE_INDEX
from pspnet.errors import ConfigError
from pspnet.training.optimization.upsampled_loss import upsampled_cross_entropy

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loss_weight(targets: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the weight of a mini-batch in a mean over several: its scored pixels times class weights, float64."""
    # No bincount: it synchronises with the GPU.
    if class_weights is None:
        return (targets != IGNORE_INDEX).sum(dtype=torch.float64)
    weights = torch.zeros(256, dtype=torch.float64, device=targets.device)  # ignored pixels: 0
    weights[: len(class_weights)] = class_weights.to(targets.device, torch.float64)
    return weights[targets.long()].sum()


class CrossEntropy(nn.Module):
    """Cross-entropy over the scored pixels, sum of weighted losses / sum of weights; 0 without scored pixels."""

    class_weights: torch.Tensor | None

    def __init__(self, class_weights: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = self.class_weights
        total = F.cross_entropy(logits, targets, _as_type(weights, logits), ignore_index=IGNORE_INDEX, reduction="sum")
        return self._mean(total, targets)

    def of_head_logits(self, logits: torch.Tensor, targets: torch.Tensor, align_corners: bool) -> torch.Tensor:
        """Return the loss of (N, C, h, w) logits as if they were up-sampled to the targets' size first."""
        weights = _as_type(self.class_weights, logits)
        return self._mean(upsampled_cross_entropy(logits, targets, weights, align_corners), targets)

    def _mean(self, total: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # PyTorch's own mean is NaN for a crop of only ignored pixels, which padding can produce.
        return total / loss_weight(targets, self.class_weights).clamp(min=1e-12).to(total.dtype)


class OhemCrossEntropy(nn.Module):
    """Cross-entropy over the hard pixels: those whose true class has a probability below `threshold`, and at least the
    hardest fraction `min_kept` of the scored ones (Shrivastava et al. 2016; used for segmentation by OCNet and HRNet).
    """

    class_weights: torch.Tensor | None

    def __init__(
        self, threshold: float = 0.7, min_kept: float = 0.0625, class_weights: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.min_kept = min_kept
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = _as_type(self.class_weights, logits)
        losses = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE_INDEX, reduction="none")  # (N, H, W)
        scored = targets != IGNORE_INDEX  # (N, H, W)
        losses, labels = losses[scored], targets[scored]  # (K,), (K,)
        if losses.numel() == 0:
            return logits.sum() * 0.0
        log_probability = F.log_softmax(logits.detach(), dim=1)  # (N, C, H, W)
        nll = -log_probability.gather(1, targets.clamp(max=logits.shape[1] - 1).unsqueeze(1)).squeeze(1)[scored]  # (K,)
        kept = max(1, int(self.min_kept * nll.numel()))
        # The smaller of "the kept-th hardest" and "probability below the threshold" selects the union of both sets.
        limit = torch.minimum(
            nll.topk(kept).values[-1], -torch.log(torch.tensor(self.threshold, device=nll.device, dtype=nll.dtype))
        )
        hard = nll >= limit  # (K,)
        total = hard.sum() if weights is None else weights[labels[hard]].sum()
        return losses[hard].sum() / total.clamp(min=1e-12)


class SegmentationLoss(nn.Module):
    """Main loss + aux_weight x the same loss on the auxiliary logits (PSPNet section 3.3: 0.4).

    Logits smaller than the targets come straight from a head and are scored as if up-sampled bilinearly.
    """

    def __init__(self, function: LossFunction, aux_weight: float = 0.4, align_corners: bool = False) -> None:
        super().__init__()
        self.function = function
        self.aux_weight = aux_weight
        self.align_corners = align_corners

    def forward(self, outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """PSPNet's outputs in training mode and (N, H, W) targets of any integer dtype -> scalar, at least float32."""
        targets = targets.long()
        if isinstance(outputs, torch.Tensor):
            return self._score(outputs, targets)
        logits, auxiliary = outputs
        return self._score(logits, targets) + self.aux_weight * self._score(auxiliary, targets)

    def _score(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = _at_least_float32(logits)
        if logits.shape[-2:] != targets.shape[-2:]:
            if isinstance(self.function, CrossEntropy):
                return self.function.of_head_logits(logits, targets, self.align_corners)
            size = list(targets.shape[-2:])
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)  # (N, C, H, W)
        return self.function(logits, targets)


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _as_type(weights: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if weights is None else weights.to(like.dtype)


def build_loss(
    name: str,
    aux_weight: float = 0.4,
    class_weights: Sequence[float] | None = None,
    ohem_threshold: float = 0.7,
    ohem_min_kept: float = 0.0625,
    align_corners: bool = False,
) -> SegmentationLoss:
    """Build the loss `name`: cross_entropy, ohem, dice, lovasz or focal."""
    weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
    if name == "cross_entropy":
        return SegmentationLoss(CrossEntropy(weights), aux_weight, align_corners)
    if name == "ohem":
        return SegmentationLoss(OhemCrossEntropy(ohem_threshold, ohem_min_kept, weights), aux_weight, align_corners)
    return SegmentationLoss(_library_loss(name), aux_weight, align_corners)


def _library_loss(name: str) -> LossFunction:
    try:
        from segmentation_models_pytorch import losses as library
    except ImportError as error:
        raise ConfigError(
            f"loss = {name} comes from segmentation-models-pytorch, which is not installed: "
            "run `pip install segmentation-models-pytorch`, or use cross_entropy or ohem."
        ) from error
    if name == "dice":
        return _OverScoredPixels(library.DiceLoss(mode="multiclass", ignore_index=IGNORE_INDEX))
    if name == "lovasz":
        return _OverScoredPixels(library.LovaszLoss(mode="multiclass", ignore_index=IGNORE_INDEX))
    if name == "focal":
        return _OverScoredPixels(library.FocalLoss(mode="multiclass", ignore_index=IGNORE_INDEX))
    raise ConfigError(f"loss = {name}: unknown; allowed are cross_entropy, ohem, dice, lovasz and focal.")


class _OverScoredPixels(nn.Module):
    """Library loss that returns 0 for a mini-batch without scored pixels, where the library returns NaN."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not bool((targets != IGNORE_INDEX).any()):
            return logits.sum() * 0.0
        result: torch.Tensor = self.function(logits, targets)
        return result
