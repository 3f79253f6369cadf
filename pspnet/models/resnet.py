"""Dilated ResNet-50 and -101 backbones.

K. He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.1 (bottleneck blocks, table 1);
dilation from H. Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105, section 3.3.

Shape letters:
    N  images in the batch
    H  image height in pixels          W  image width in pixels
    C  channels; numbers are for the published width of 64
    s  output stride: 8, 16 or 32. A side of X pixels becomes ceil(X / stride) cells, written X/stride.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pspnet.errors import PspnetError

OUTPUT_STRIDES = (8, 16, 32)
STEMS = ("conv7", "deep", "deep-narrow")

# Output stride -> (stride, dilation) of layer3 and of layer4. In a layer without stride every 3x3 convolution has the
# full dilation, as in the published PSPNet (semseg). With contract_dilation the first block keeps the previous layer's
# dilation, as in mmsegmentation, GluonCV and torchvision's replace_stride_with_dilation: the same weights then compute
# another function.
_STRIDE_AND_DILATION = {
    8: ((1, 2), (1, 4)),
    16: ((2, 1), (1, 2)),
    32: ((2, 1), (2, 1)),
}


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
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, 4 * channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)  # (N, 4c, h/stride, w/stride)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))  # (N, c, h, w)
        out = self.relu(self.bn2(self.conv2(out)))  # (N, c, h/stride, w/stride)
        out = self.bn3(self.conv3(out))  # (N, 4c, h/stride, w/stride)
        out += shortcut
        out = self.relu(out)
        return out


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


class ResNet(nn.Module):
    """Bottleneck ResNet without its classifier, at output stride 8, 16 or 32.

    `layer1` to `layer4` have torchvision's names (`layer1.0.downsample.0.weight`). The names of the stem are
    `stem.conv1` and `stem.bn1`, and for the deep stem also `stem.conv2`, `stem.bn2`, `stem.conv3` and `stem.bn3`.

    Args:
        layers: blocks of layer1 to layer4, such as (3, 4, 6, 3) for ResNet-50.
        output_stride: image pixels per cell of the map of layer4, 8, 16 or 32.
        stem: "conv7" (one 7x7 convolution, 64 channels), "deep" (three 3x3: 64, 64, 128) or "deep-narrow" (three
            3x3: 32, 32, 64).
        width: channels of the stem and of the narrow convolutions in layer1, 64 as published; all others scale.
        contract_dilation: the first block of a dilated layer keeps the previous layer's dilation.

    Raises:
        PspnetError: an unsupported output stride, stem, list of layers or width.
    """

    def __init__(
        self,
        layers: Sequence[int],
        output_stride: int = 8,
        stem: str = "conv7",
        width: int = 64,
        contract_dilation: bool = False,
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
        (stride3, dilation3), (stride4, dilation4) = _STRIDE_AND_DILATION[output_stride]
        self.output_stride = output_stride
        self.stem_name = stem
        self.layer3_channels = 16 * width
        self.out_channels = 32 * width

        self.stem = _build_stem(stem, width)
        expansion = Bottleneck.expansion
        first3, first4 = (1, dilation3) if contract_dilation else (dilation3, dilation4)
        self.layer1 = _layer(layers[0], self.stem.out_channels, width, stride=1, dilation=1)
        self.layer2 = _layer(layers[1], width * expansion, 2 * width, stride=2, dilation=1)
        self.layer3 = _layer(layers[2], 2 * width * expansion, 4 * width, stride3, dilation3, first3)
        self.layer4 = _layer(layers[3], 4 * width * expansion, 8 * width, stride4, dilation4, first4)
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
    blocks: int, in_channels: int, channels: int, stride: int, dilation: int, first_dilation: int = 1
) -> nn.Sequential:
    """Stack `blocks` bottlenecks; only the first has the stride, the width change and `first_dilation`."""
    out_channels = channels * Bottleneck.expansion
    first = Bottleneck(in_channels, channels, stride, first_dilation)
    return nn.Sequential(first, *(Bottleneck(out_channels, channels, 1, dilation) for _ in range(blocks - 1)))
