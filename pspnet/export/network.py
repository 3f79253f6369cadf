"""The network that is exported: images in, mask and logits out, in operations that every format knows.

Shape letters:
    N  images in the batch             K  classes
    H  image height in pixels          W  image width in pixels
    C  channels of the backbone's map  h, w  rows and columns of that map
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.models.folded import fold
from pspnet.models.pspnet import PSPNet, SegmentationNetwork

# What the converters trace with. Images, rows and columns differ and none is 1, so that no converter takes one for
# another or for a constant.
EXAMPLE_SHAPE = (2, 3, 97, 129)


def export_network(model: SegmentationNetwork) -> ExportNetwork:
    """The network that is exported of a model, which stays as it is: on the CPU, float32, batch norm folded away."""
    model = copy.deepcopy(model).cpu().float().eval()
    form: nn.Module = fold(model, portable=True) if isinstance(model, PSPNet) else _HeadLogits(model)
    return ExportNetwork(form, model.align_corners).eval().requires_grad_(False)


def example_images() -> Tensor:
    """(2, 3, 97, 129) uint8 noise to trace with."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, EXAMPLE_SHAPE, dtype=torch.uint8, generator=generator)


class ExportNetwork(nn.Module):
    """A network with the two outputs of an export.

    Args:
        form: (N, 3, H, W) uint8 -> logits (N, K, h, w) float32 at the head's size.
        align_corners: convention of the up-sampling of the logits.
    """

    def __init__(self, form: nn.Module, align_corners: bool) -> None:
        super().__init__()
        self.form = form
        self.align_corners = align_corners

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) uint8 RGB -> mask (N, H, W) uint8 and logits (N, K, h, w) float32."""
        logits = self.form(images)  # (N, K, h, w)
        size = images.shape[-2:]
        full = F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)  # (N, K, H, W)
        return full.argmax(dim=1).to(torch.uint8), logits


class _HeadLogits(nn.Module):
    """A network without its last up-sampling, for the algorithms that have no inference form of their own."""

    def __init__(self, model: SegmentationNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB -> logits (N, K, h, w)."""
        x = (images.to(torch.float32) - self.model.mean) / self.model.std  # (N, 3, H, W)
        _, layer4 = self.model.backbone(x)  # (N, C, h, w)
        logits: Tensor = self.model.head(layer4)  # (N, K, h, w)
        return logits
