"""Dilated ResNet-18, -34, -50 and -101 backbones.

K. He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.1 (blocks: table 1, figure 5);
dilation from H. Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105, section 3.3.

Shape letters:
    N  images in the batch
    H  image height in pixels          W  image width in pixels
    C  channels; numbers are for ResNet-50
    s  output stride: 8, 16 or 32. A side of X pixels becomes ceil(X / stride) cells, written X/stride.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pspnet.errors import PspnetError

OUTPUT_STRIDES = (8, 16, 32)
STEMS = ("conv7", "deep", "deep-narrow")

# Output stride -> strides and dilations of layer3 and layer4. Every 3x3 convolution of a layer has the full dilation,
# as in the published PSPNet (semseg). With contract_dilation the first block has half of it, the previous layer's, as
# in mmsegmentation, GluonCV and torchvision's replace_stride_with_dilation: the same weights then compute another
# function, that of the undilated network on a finer grid.
_STRIDES = {8: (1, 1), 16: (2, 1), 32: (2, 2)}
_DILATIONS = {8: (2, 4), 16: (1, 2), 32: (1, 1)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, with the stride on the first.

    Parameter names are torchvision's. `second_dilation` is that of the second convolution.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1, second_dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second_dilation, dilation=second_dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)  # (N, c, h/stride, w/stride)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))  # (N, c, h/stride, w/stride)
        out = self.bn2(self.conv2(out))  # (N, c, h/stride, w/stride)
        out += shortcut
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut, with the stride on the 3x3 ("ResNet v1.5").

    Parameter names are torchvision's.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, 4 * channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)  # (N, 4c, h/stride, w/stride)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))  # (N, c, h, w)
        out = self.relu(self.bn2(self.conv2(out)))  # (N, c, h/stride, w/stride)
        out = self.bn3(self.conv3(out))  # (N, 4c, h/stride, w/stride)
        out += shortcut
        out = self.relu(out)
        return out


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Build the 1x1 convolution of a shortcut that changes the shape; None for an identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class Conv7Stem(nn.Module):
    """One 7x7 convolution, stride 2 (He et al., table 1): the stem of torchvision's weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 64, H/4, W/4)."""
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        x = self.maxpool(x)  # (N, 64, H/4, W/4)
        return x


class DeepStem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2.

    Args:
        channels: of the first two convolutions; the third has twice as many. 64 in semseg's and GluonCV's PSPNet
            ("v1s"), 32 in mmsegmentation's ("v1c", T. He et al., Bag of Tricks, arXiv 1812.01187, figure 2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = 2 * channels
        self.conv1 = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2c, H/4, W/4), where c are the channels of the first convolution."""
        x = self.relu(self.bn1(self.conv1(x)))  # (N, c, H/2, W/2)
        x = self.relu(self.bn2(self.conv2(x)))  # (N, c, H/2, W/2)
        x = self.relu(self.bn3(self.conv3(x)))  # (N, 2c, H/2, W/2)
        x = self.maxpool(x)  # (N, 2c, H/4, W/4)
        return x


def initialise_convolutions(module: nn.Module) -> None:
    """Initialise as torchvision's ResNet: Kaiming-normal convolutions (fan out), batch norm weights 1, biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)


def zero_residual_branches(backbone: nn.Module) -> None:
    """Set the last batch norm weight of every residual block to 0, so that each block starts as its shortcut.

    P. Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, section 5.1.
    """
    for block in backbone.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            nn.init.zeros_((block.bn2 if isinstance(block, BasicBlock) else block.bn3).weight)


class ResNet(nn.Module):
    """ResNet without its classifier, at output stride 8, 16 or 32.

    `layer1` to `layer4` have torchvision's names (`layer1.0.downsample.0.weight`). The names of the stem are
    `stem.conv1` and `stem.bn1`, and for the deep stem also `stem.conv2`, `stem.bn2`, `stem.conv3` and `stem.bn3`.

    Args:
        layers: blocks of layer1 to layer4, such as (3, 4, 6, 3) for ResNet-50.
        output_stride: image pixels per cell of the map of layer4, 8, 16 or 32.
        stem: "conv7" (one 7x7 convolution, 64 channels), "deep" (three 3x3: 64, 64, 128) or "deep-narrow" (three
            3x3: 32, 32, 64).
        width: channels of the stem and of the narrow convolutions in layer1, 64 as published; all others scale.
        contract_dilation: the first block of a dilated layer has half of its dilation, the previous layer's.
        basic: basic blocks (ResNet-18 and -34) instead of bottlenecks.
        dilations: of layer3 and layer4; None for those that replace the strides left out: (2, 4), (1, 2) or (1, 1).
        dilate_both: both convolutions of a basic block are dilated; mmsegmentation dilates only the first.

    Raises:
        PspnetError: an unsupported output stride, stem, list of layers, width or dilation.
    """

    def __init__(
        self,
        layers: Sequence[int],
        output_stride: int = 8,
        stem: str = "conv7",
        width: int = 64,
        contract_dilation: bool = False,
        basic: bool = False,
        dilations: Sequence[int] | None = None,
        dilate_both: bool = True,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise PspnetError(f"layers is {tuple(layers)}: expected four positive block counts, such as (3, 4, 6, 3).")
        if output_stride not in OUTPUT_STRIDES:
            raise PspnetError(f"output_stride is {output_stride!r}: expected one of 8, 16, 32.")
        if stem not in STEMS:
            raise PspnetError(f"stem is {stem!r}: expected one of {', '.join(STEMS)}.")
        if width < 1:
            raise PspnetError(f"width is {width}: expected a positive number of channels (64 as published).")
        if stem == "deep-narrow" and width % 2:
            raise PspnetError(f"width is {width}: expected an even number, since the stem deep-narrow halves it.")
        dilations = _DILATIONS[output_stride] if dilations is None else tuple(dilations)
        if len(dilations) != 2 or min(dilations) < 1:
            raise PspnetError(f"dilations is {dilations}: expected two positive numbers, of layer3 and layer4.")
        expansion = BasicBlock.expansion if basic else Bottleneck.expansion
        self.output_stride = output_stride
        self.stem_name = stem
        self.layer3_channels = 4 * width * expansion
        self.out_channels = 8 * width * expansion

        stride3, stride4 = _STRIDES[output_stride]
        dilation3, dilation4 = dilations
        first3, first4 = (max(1, dilation // 2) if contract_dilation else dilation for dilation in dilations)
        # Of the second convolution in basic blocks.
        second, second3, second4 = (
            (dilation if dilate_both else 1) if basic else None for dilation in (1, dilation3, dilation4)
        )
        self.stem = _build_stem(stem, width)
        self.layer1 = _layer(layers[0], self.stem.out_channels, width, 1, 1, 1, second)
        self.layer2 = _layer(layers[1], width * expansion, 2 * width, 2, 1, 1, second)
        self.layer3 = _layer(layers[2], 2 * width * expansion, 4 * width, stride3, dilation3, first3, second3)
        self.layer4 = _layer(layers[3], 4 * width * expansion, 8 * width, stride4, dilation4, first4, second4)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of layer3 and layer4.

        Args:
            x: (N, 3, H, W) normalised RGB.

        Returns:
            (N, 1024, H/min(s, 16), W/min(s, 16)) of layer3 and (N, 2048, H/s, W/s) of layer4.
        """
        x = self.stem(x)  # (N, 64 or 128, H/4, W/4)
        x = self.layer1(x)  # (N, 256, H/4, W/4)
        x = self.layer2(x)  # (N, 512, H/8, W/8)
        layer3 = self.layer3(x)  # (N, 1024, H/min(s, 16), W/min(s, 16))
        layer4 = self.layer4(layer3)  # (N, 2048, H/s, W/s)
        return layer3, layer4


def _build_stem(stem: str, width: int) -> Conv7Stem | DeepStem:
    if stem == "conv7":
        return Conv7Stem(width)
    return DeepStem(width if stem == "deep" else width // 2)


def _layer(
    blocks: int,
    in_channels: int,
    channels: int,
    stride: int,
    dilation: int,
    first_dilation: int,
    second_dilation: int | None,
) -> nn.Sequential:
    """Stack residual blocks; only the first has the stride, the width change and `first_dilation`.

    `second_dilation` is that of the second convolution of basic blocks; None for bottlenecks.
    """

    def block(in_channels: int, stride: int, dilation: int) -> BasicBlock | Bottleneck:
        if second_dilation is None:
            return Bottleneck(in_channels, channels, stride, dilation)
        return BasicBlock(in_channels, channels, stride, dilation, second_dilation)

    first = block(in_channels, stride, first_dilation)
    out_channels = channels * first.expansion
    return nn.Sequential(first, *(block(out_channels, 1, dilation) for _ in range(blocks - 1)))
