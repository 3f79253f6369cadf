"""Pyramid pooling, the main head and the auxiliary head of PSPNet.

H. Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105: section 3.2 and figure 3 (pyramid pooling), section 3.3
(auxiliary loss on the output of stage 4, `layer3` here).

The main head computes the published form without its concatenated map: see spread.py.

Shape letters:
    N  images in the batch             K  classes
    C  channels of the backbone's map: for ResNet-50, 2048 for the main head, 1024 for the auxiliary head
    h  rows of the backbone's map      w  columns of the backbone's map
    b  bin: the pooled grid has b x b cells
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.models.resnet import initialise_convolutions
from pspnet.models.spread import convolve_upsampled

BINS = (1, 2, 3, 6)


class SingleValueBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that accepts one value per channel in training.

    The 1 x 1 bin of a batch of one image has one value per channel, whose variance is undefined: plain batch norm
    raises. Such a batch is normalised with the running statistics, which are not updated. The state dict is that of
    batch norm, and SyncBatchNorm.convert_sync_batchnorm converts it like any other.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape, normalised per channel."""
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(input)


class PyramidBranch(nn.Module):
    """One level of the pyramid: average pooling to bin x bin, 1x1 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, bin_size: int) -> None:
        super().__init__()
        self.bin_size = bin_size
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = SingleValueBatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C/4, b, b). Every cell averages at least one position of a map that is smaller."""
        x = F.adaptive_avg_pool2d(x, self.bin_size)  # (N, C, b, b)
        x = self.relu(self.bn(self.conv(x)))  # (N, C/4, b, b)
        return x


class PyramidPooling(nn.Module):
    """Averages of a map over grids of bins x bins, each passed through its branch.

    Args:
        in_channels: channels of the map; each branch has in_channels // len(bins).
        bins: grid sizes; published: (1, 2, 3, 6).
    """

    def __init__(self, in_channels: int, bins: Sequence[int] = BINS) -> None:
        super().__init__()
        branch_channels = in_channels // len(bins)
        self.out_channels = branch_channels * len(bins)
        self.branches = nn.ModuleList(PyramidBranch(in_channels, branch_channels, bin_size) for bin_size in bins)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, h, w) -> a list with (N, C/4, b, b) for each bin."""
        return [branch(x) for branch in self.branches]


class PSPHead(nn.Module):
    """Main head: pyramid pooling, 3x3 convolution, batch norm, ReLU, dropout, 1x1 classifier.

    The 3x3 convolution's weight has the published layout: the first C input channels belong to the map, the others to
    the up-sampled grids in the order of the bins.

    Args:
        in_channels: channels C of the backbone's last map, 2048 for ResNet-50; the 3x3 convolution maps 2C to C/4.
        num_classes: classes K.
        align_corners: convention of the bilinear up-sampling of the grids (semseg: True, mmsegmentation: False).
        dropout: probability of dropping a channel in training, 0.1 as published.
    """

    def __init__(self, in_channels: int, num_classes: int, align_corners: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        channels = in_channels // 4
        self.align_corners = align_corners
        self.map_channels = in_channels
        self.pyramid = PyramidPooling(in_channels, BINS)
        self.conv = nn.Conv2d(in_channels + self.pyramid.out_channels, channels, 3, padding=1, bias=False)
        self.bn = SingleValueBatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        _initialise_head(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> logits (N, K, h, w)."""
        # One split, so that the backward pass concatenates the two gradients in one operation.
        of_map, of_grids = self.conv.weight.split([self.map_channels, self.pyramid.out_channels], 1)  # (C/4, C, 3, 3)
        y = F.conv2d(x, of_map, padding=1)  # (N, C/4, h, w)
        y = y + convolve_upsampled(self.pyramid(x), of_grids, x.shape[-2:], self.align_corners)
        y = self.relu(self.bn(y))  # (N, C/4, h, w)
        logits: Tensor = self.classifier(self.dropout(y))  # (N, K, h, w)
        return logits


class AuxiliaryHead(nn.Module):
    """Training-only head on layer3: 3x3 convolution, batch norm, ReLU, dropout, 1x1 classifier.

    Args:
        in_channels: channels C of layer3, 1024 for ResNet-50; the 3x3 convolution maps C to C/4.
        num_classes: classes K.
        dropout: probability of dropping a channel in training, 0.1 as published.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        channels = in_channels // 4
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn = SingleValueBatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        _initialise_head(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> logits (N, K, h, w)."""
        x = self.relu(self.bn(self.conv(x)))  # (N, C/4, h, w)
        logits: Tensor = self.classifier(self.dropout(x))  # (N, K, h, w)
        return logits


def _initialise_head(head: nn.Module, classifier: nn.Conv2d) -> None:
    """Initialise as mmsegmentation: Kaiming-normal convolutions, classifier weights normal (std 0.01), bias 0."""
    initialise_convolutions(head)
    nn.init.normal_(classifier.weight, std=0.01)
