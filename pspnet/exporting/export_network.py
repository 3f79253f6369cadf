"""The exported network: images in, mask and logits out, in operations that every format supports.

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

from pspnet.models.fused.folded import fold
from pspnet.models.pspnet import PSPNet, SegmentationNetwork

# Example input for tracing. Images, rows and columns differ and none is 1, so that no converter confuses them or treats
# one as a constant.
EXAMPLE_SHAPE = (2, 3, 97, 129)


def export_network(model: SegmentationNetwork) -> ExportNetwork:
    """Build the exported network of a model, on the CPU, in float32, with batch norm folded; the model is unchanged."""
    model = copy.deepcopy(model).cpu().float().eval()
    backbone: nn.Module = _LastFeatures(model.backbone)
    head: nn.Module = model.head
    if isinstance(model, PSPNet):
        fused = fold(model, portable=True)
        backbone, head = fused.backbone, fused.head
    network = ExportNetwork(backbone, head, model.mean, 1 / model.std, model.align_corners)
    return network.eval().requires_grad_(False)


def example_images() -> Tensor:
    """(2, 3, 97, 129) uint8 noise for tracing."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, EXAMPLE_SHAPE, dtype=torch.uint8, generator=generator)


class ExportNetwork(nn.Module):
    """A network with the two outputs of an export.

    Args:
        backbone: (N, 3, H, W) normalised -> (N, C, h, w).
        head: (N, C, h, w) -> logits (N, K, h, w).
        mean: (1, 3, 1, 1), of the pixels.
        scale: (1, 3, 1, 1), the reciprocal of their standard deviation.
        align_corners: convention of the up-sampling of the logits.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Module, mean: Tensor, scale: Tensor, align_corners: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.align_corners = align_corners

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) uint8 RGB -> mask (N, H, W) uint8 and logits (N, K, h, w) float32."""
        x = (images.to(torch.float32) - self.mean) * self.scale  # (N, 3, H, W)
        logits = self.head(self.backbone(x))  # (N, C, h, w) -> (N, K, h, w)
        size = images.shape[-2:]
        full = F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)  # (N, K, H, W)
        return full.argmax(dim=1).to(torch.uint8), logits


class _LastFeatures(nn.Module):
    """A backbone without the features of the auxiliary head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> layer4's (N, C, h, w)."""
        features: Tensor = self.backbone(x)[1]
        return features
