"""Published form of the head: grids up-sampled, concatenated with the map, one 3x3 convolution. For comparison only.

It is the reference of all speed-ups and of the tests of the project's own head. Both have the same state dict.

Shape letters:
    N  images in the batch             K  classes
    C  channels of the backbone's map  h, w  its rows and columns
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet.models.pspnet import PSPNet
from pspnet.models.pyramid import PSPHead


class PlainPSPHead(PSPHead):
    """Published form of the main head."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> logits (N, K, h, w)."""
        size = x.shape[-2:]
        maps = [
            F.interpolate(grid, size, mode="bilinear", align_corners=self.align_corners) for grid in self.pyramid(x)
        ]
        y = self.relu(self.bn(self.conv(torch.cat([x, *maps], dim=1))))  # (N, C/4, h, w)
        logits: Tensor = self.classifier(self.dropout(y))  # (N, K, h, w)
        return logits


def make_plain(model: PSPNet) -> PSPNet:
    """Convert the main head of a network to the published form in place; its weights are kept."""
    model.head.__class__ = PlainPSPHead
    return model
