"""The head as it is published: grids up-sampled, concatenated with the map, one 3x3 convolution. For comparison only.

Takes the weights of the project's own head, whose state dict has the same names and shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet.models.pspnet import PSPNet
from pspnet.models.pyramid import PSPHead


class PlainPSPHead(PSPHead):
    """The published form of the main head."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        maps = [
            F.interpolate(grid, size, mode="bilinear", align_corners=self.align_corners) for grid in self.pyramid(x)
        ]
        y = self.relu(self.bn(self.conv(torch.cat([x, *maps], dim=1))))
        logits: Tensor = self.classifier(self.dropout(y))
        return logits


def make_plain(model: PSPNet) -> PSPNet:
    """Turn the main head of a network into the published form, in place; its weights stay."""
    model.head.__class__ = PlainPSPHead
    return model
