"""The inference form of a PSPNet: batch norm folded into the convolutions, the auxiliary head left out.

Computes the same function as the network it is made from, with fewer passes over memory: a convolution, its bias, the
residual addition and ReLU are one operation where oneDNN is at hand (float32 and bfloat16 on CPUs), and 3x3
convolutions of many channels use Winograd's algorithm there. For float32 the logits agree to about 1e-5 of their size.

Shape letters:
    N  images in the batch             K  classes
    H  image height in pixels          W  image width in pixels
    C  channels of the backbone's map  s  output stride of the backbone
    h, w  rows and columns of the map
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.models.pspnet import PSPNet, check_images
from pspnet.models.pyramid import PSPHead, PyramidBranch
from pspnet.models.resnet import Bottleneck, ResNet
from pspnet.models.spread import convolve_upsampled
from pspnet.models.winograd import WinogradConv2d

# Below this many channels the transforms of a Winograd convolution cost more than they save.
_WINOGRAD_CHANNELS = 128


def fold(model: PSPNet, dtype: torch.dtype = torch.float32, winograd: bool | None = None) -> FoldedPSPNet:
    """The inference form of a network, on the network's device; the network itself stays as it is.

    Args:
        dtype: of weights and activations. The logits are float32 all the same.
        winograd: whether to use Winograd's algorithm where it is faster; by default on CPUs in float32.
    """
    device = next(model.parameters()).device
    if winograd is None:
        winograd = device.type == "cpu" and dtype == torch.float32
    with torch.no_grad():
        return FoldedPSPNet(model, dtype, winograd).eval()


def inference_form(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The fastest module that computes a network's logits in evaluation, on the network's device.

    `fold` for PSPNet; others (torchvision's) as they are, under autocast for a `dtype` other than float32.
    """
    if isinstance(model, PSPNet):
        return fold(model, dtype)
    model = model.eval().to(memory_format=torch.channels_last)
    return model if dtype == torch.float32 else _Autocast(model, dtype)


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, uint8 or floating point 0..255 -> logits (N, K, H, W), float32."""
        with torch.autocast(images.device.type, self.dtype):
            logits: Tensor = self.model(images)  # (N, K, H, W)
        return logits


class FoldedPSPNet(nn.Module):
    """See `fold`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: PSPNet, dtype: torch.dtype, winograd: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.align_corners = model.align_corners
        self.register_buffer("mean", model.mean.float())
        self.register_buffer("scale", 1 / model.std.float())
        self.backbone = _FoldedResNet(model.backbone, dtype, winograd)
        self.head = _FoldedHead(model.head, dtype, winograd)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, uint8 or floating point 0..255 -> logits (N, K, H, W), float32. Errors as PSPNet's."""
        check_images(images)
        x = (images.to(torch.float32, memory_format=torch.channels_last) - self.mean) * self.scale  # (N, 3, H, W)
        logits = self.head(self.backbone(x.to(self.dtype)))  # (N, K, H/s, W/s)
        size = images.shape[-2:]
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=self.align_corners)  # (N, K, H, W)


class _FoldedResNet(nn.Module):
    def __init__(self, backbone: ResNet, dtype: torch.dtype, winograd: bool) -> None:
        super().__init__()
        stem = backbone.stem
        pairs = [
            (stem.get_submodule(f"conv{n}"), stem.get_submodule(f"bn{n}"))
            for n in (1, 2, 3)
            if hasattr(stem, f"conv{n}")
        ]
        self.stem = nn.Sequential(*(_fold(conv, bn, dtype) for conv, bn in pairs), stem.maxpool)
        layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        blocks = [block for layer in layers for block in layer if isinstance(block, Bottleneck)]
        self.blocks = nn.Sequential(*(_FoldedBottleneck(block, dtype, winograd) for block in blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> layer4's (N, C, H/s, W/s)."""
        x = self.stem(x)  # (N, 64 or 128, H/4, W/4)
        x = self.blocks(x)  # (N, C, H/s, W/s)
        return x


class _FoldedBottleneck(nn.Module):
    def __init__(self, block: Bottleneck, dtype: torch.dtype, winograd: bool) -> None:
        super().__init__()
        self.conv1 = _fold(block.conv1, block.bn1, dtype)
        self.conv2 = _fold(block.conv2, block.bn2, dtype, winograd)
        self.conv3 = _fold(block.conv3, block.bn3, dtype)
        self.downsample: nn.Module | None = None
        if isinstance(block.downsample, nn.Sequential):
            self.downsample = _fold(block.downsample[0], block.downsample[1], dtype, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, 4 * channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)  # (N, 4c, h/stride, w/stride)
        y = self.conv2(self.conv1(x))  # (N, c, h/stride, w/stride)
        result: Tensor = self.conv3(y, shortcut)  # (N, 4c, h/stride, w/stride)
        return result


class _FoldedHead(nn.Module):
    taps: Tensor

    def __init__(self, head: PSPHead, dtype: torch.dtype, winograd: bool) -> None:
        super().__init__()
        self.align_corners = head.align_corners
        branches = [branch for branch in head.pyramid.branches if isinstance(branch, PyramidBranch)]
        self.bins = [branch.bin_size for branch in branches]
        self.branches = nn.ModuleList(_fold(branch.conv, branch.bn, dtype) for branch in branches)
        weight, bias = _folded_weights(head.conv, head.bn)  # (C/4, 2C, 3, 3), (C/4,)
        own = head.conv.in_channels - head.pyramid.out_channels
        self.conv = _convolution(weight[:, :own], bias, head.conv, dtype, winograd, relu=True)
        self.register_buffer("taps", weight[:, own:].to(dtype).contiguous(memory_format=torch.channels_last))
        assert head.classifier.bias is not None
        weight, bias = head.classifier.weight, head.classifier.bias
        self.classifier = _convolution(weight, bias, head.classifier, dtype, winograd=False, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> logits (N, K, h, w)."""
        grids = [branch(F.adaptive_avg_pool2d(x, bins)) for branch, bins in zip(self.branches, self.bins)]
        spread = convolve_upsampled(grids, self.taps, x.shape[-2:], self.align_corners)  # (N, C/4, h, w)
        logits: Tensor = self.classifier(self.conv(x, spread))  # (N, K, h, w)
        return logits


class FusedConv2d(nn.Module):
    """A convolution with its bias, an optional addition and an optional ReLU: one oneDNN operation where there is one.

    Args:
        weight: (O, C, kernel, kernel).
        bias: (O,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: Any, padding: Any, dilation: Any, relu: bool = True
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.relu = relu

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(N, C, h, w), and what is added before ReLU (N, O, h', w') or None -> (N, O, h', w').

        `added` may be overwritten.
        """
        if not _has_fused_convolution(x):
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
            if added is not None:
                y += added
            return y.relu_() if self.relu else y
        places = (self.weight, self.bias, self.padding, self.stride, self.dilation, 1)
        relu = "relu" if self.relu else None
        if added is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, *places, relu or "none", [], "")
        else:
            y = torch.ops.mkldnn._convolution_pointwise_.binary(added, x, *places, "add", 1.0, relu, [], None)
        result: Tensor = y
        return result


def _has_fused_convolution(x: Tensor) -> bool:
    if x.device.type != "cpu" or not _has_onednn_operations():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache(maxsize=1)
def _has_onednn_operations() -> bool:
    """These operations are PyTorch's own but not public, so their absence must cost no more than speed."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        torch.ops.mkldnn._convolution_pointwise_.binary  # noqa: B018
        torch.ops.mkldnn._convolution_pointwise  # noqa: B018
        torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: B018
    except (AttributeError, RuntimeError):  # newer and older versions' word for an operation that is not there
        return False
    return True


def _fold(conv: nn.Module, bn: nn.Module, dtype: torch.dtype, winograd: bool = False, relu: bool = True) -> nn.Module:
    assert isinstance(conv, nn.Conv2d)
    weight, bias = _folded_weights(conv, bn)
    return _convolution(weight, bias, conv, dtype, winograd, relu)


def _folded_weights(conv: nn.Conv2d, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what the convolution and batch norm after it do in evaluation."""
    assert isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()  # (O,)
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    bias = bn.bias.double() - bn.running_mean.double() * scale
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _convolution(
    weight: Tensor, bias: Tensor, conv: nn.Conv2d, dtype: torch.dtype, winograd: bool, relu: bool
) -> nn.Module:
    suits = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and weight.shape[1] >= _WINOGRAD_CHANNELS
    if winograd and suits:
        assert conv.padding == conv.dilation
        return WinogradConv2d(weight.to(dtype), bias.to(dtype), conv.dilation[0], relu)
    return FusedConv2d(weight.to(dtype), bias.to(dtype), conv.stride, conv.padding, conv.dilation, relu)
