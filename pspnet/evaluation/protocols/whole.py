"""Protocol `whole`: one forward pass per image, at the image's own size.

Legend: N images in a batch, C classes, H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from pspnet.evaluation.metrics import ConfusionMatrix

if TYPE_CHECKING:  # an endpoint predicts without the packages that read training data
    from pspnet.data.loader import Batch


@torch.no_grad()
def predict_whole(model: nn.Module, images: torch.Tensor, autocast_dtype: torch.dtype | None = None) -> torch.Tensor:
    """(N, 3, H, W) RGB 0..255 -> (N, H, W) int64 class ids, one forward pass at full size."""
    with torch.autocast(images.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        logits = model(images)  # (N, C, H, W)
    result: torch.Tensor = logits.argmax(dim=1)  # (N, H, W)
    return result


def evaluate_whole(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> ConfusionMatrix:
    """Count the confusion matrix over all batches in evaluation mode; the model's mode is restored afterwards."""
    confusion = ConfusionMatrix(num_classes, device)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            images = batch.images.to(device, non_blocking=True)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            targets = batch.targets.to(device, non_blocking=True)
            confusion.update(predict_whole(model, images, autocast_dtype), targets)
    finally:
        model.train(was_training)
    return confusion
