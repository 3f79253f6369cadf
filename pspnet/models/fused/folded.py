"""Fused inference model of a PSPNet: batch norm folded into the convolutions, no auxiliary head.

Computes the same function as the network with fewer passes over memory: convolution, bias, residual addition and ReLU
are one operation with oneDNN (float32 and bfloat16 on CPUs), and 3x3 convolutions of many channels use Winograd's
algorithm there. In float32 the relative error of the logits is about 1e-5.

Shape letters:
    N  images in the batch             K  classes
    H  image height in pixels          W  image width in pixels
    C  channels of the backbone's map  s  output stride of the backbone
    h, w  rows and columns of the map
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.models.fused.winograd import WinogradConv2d
from pspnet.models.pspnet import PSPNet, check_images
from pspnet.models.pyramid import PSPHead, PyramidBranch
from pspnet.models.resampling import average_grids
from pspnet.models.resnet import BasicBlock, Bottleneck, ResNet
from pspnet.models.spread import convolve_upsampled

# With fewer channels the transforms of a Winograd convolution cost more than they save.
_MIN_WINOGRAD_CHANNELS = 128


def fold(
    model: PSPNet, dtype: torch.dtype = torch.float32, winograd: bool | None = None, portable: bool = False
) -> FoldedPSPNet:
    """Build the fused inference model of a network on its device. The network is unchanged.

    Args:
        dtype: of weights and activations. The logits are always float32.
        winograd: whether to use Winograd's algorithm where it is faster; by default on CPUs in float32, unless
            portable.
        portable: use public PyTorch operations only, for compilers and exports, which fuse and choose memory layouts
            themselves.
    """
    device = next(model.parameters()).device
    if winograd is None:
        winograd = device.type == "cpu" and dtype == torch.float32 and not portable
    with torch.no_grad():
        return FoldedPSPNet(model, _Fusion(dtype, winograd, portable)).eval()


def build_inference_model(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the fastest module that computes a network's logits in evaluation mode, on the network's device.

    PSPNet is folded; other networks (torchvision's) run unchanged, under autocast unless `dtype` is float32.
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


@dataclass(frozen=True)
class _Fusion:
    """Precision and implementation of the fused convolutions."""

    dtype: torch.dtype
    winograd: bool
    portable: bool

    def fold(self, conv: nn.Module, bn: nn.Module, relu: bool = True) -> nn.Module:
        """Fuse a convolution and the batch norm after it into one module."""
        assert isinstance(conv, nn.Conv2d)
        weight, bias = _folded_weights(conv, bn)
        return self.convolution(weight, bias, conv, relu)

    def convolution(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, relu: bool = True) -> nn.Module:
        """Build the convolution `conv` with another weight and bias."""
        weight, bias = weight.to(self.dtype), bias.to(self.dtype)
        many_channels = weight.shape[1] >= _MIN_WINOGRAD_CHANNELS
        if self.winograd and many_channels and conv.kernel_size == (3, 3) and conv.stride == (1, 1):
            assert conv.padding == conv.dilation
            return WinogradConv2d(weight, bias, conv.dilation[0], relu)
        kind: type[FusedConv2d] = FusedConv2d
        if not self.portable and _has_onednn(weight):
            kind = OneDnnConv2d
        return kind(weight, bias, conv.stride, conv.padding, conv.dilation, relu)


class FoldedPSPNet(nn.Module):
    """Fused inference model, built by `fold`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: PSPNet, fusion: _Fusion) -> None:
        super().__init__()
        self.dtype = fusion.dtype
        self.align_corners = model.align_corners
        self.register_buffer("mean", model.mean.float())
        self.register_buffer("scale", 1 / model.std.float())
        self.backbone = _FoldedResNet(model.backbone, fusion)
        self.head = _FoldedHead(model.head, fusion)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, uint8 or floating point 0..255 -> logits (N, K, H, W), float32. Raises as PSPNet."""
        check_images(images)
        x = (images.to(torch.float32, memory_format=torch.channels_last) - self.mean) * self.scale  # (N, 3, H, W)
        logits = self.head(self.backbone(x.to(self.dtype)))  # (N, K, H/s, W/s)
        size = images.shape[-2:]
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=self.align_corners)  # (N, K, H, W)


class _FoldedResNet(nn.Module):
    def __init__(self, backbone: ResNet, fusion: _Fusion) -> None:
        super().__init__()
        stem = backbone.stem
        pairs = [
            (stem.get_submodule(f"conv{n}"), stem.get_submodule(f"bn{n}"))
            for n in (1, 2, 3)
            if hasattr(stem, f"conv{n}")
        ]
        self.stem = nn.Sequential(*(fusion.fold(conv, bn) for conv, bn in pairs), stem.maxpool)
        layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        blocks = [block for layer in layers for block in layer if isinstance(block, (BasicBlock, Bottleneck))]
        self.blocks = nn.Sequential(*(_FoldedBlock(block, fusion) for block in blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised RGB -> features of layer4 (N, C, H/s, W/s)."""
        x = self.stem(x)  # (N, 64 or 128, H/4, W/4)
        x = self.blocks(x)  # (N, C, H/s, W/s)
        return x


class _FoldedBlock(nn.Module):
    """Residual block: the last convolution adds the shortcut before its ReLU."""

    def __init__(self, block: BasicBlock | Bottleneck, fusion: _Fusion) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        *inner, last = (fusion.fold(conv, bn) for conv, bn in pairs)
        self.inner = nn.Sequential(*inner)
        self.last = last
        self.downsample: nn.Module | None = None
        if isinstance(block.downsample, nn.Sequential):
            self.downsample = fusion.fold(block.downsample[0], block.downsample[1], relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, O, h/stride, w/stride); O is 4c for a bottleneck, c for a basic block."""
        shortcut = x if self.downsample is None else self.downsample(x)  # (N, O, h/stride, w/stride)
        y = self.inner(x)  # (N, c, h/stride, w/stride)
        result: Tensor = self.last(y, shortcut)  # (N, O, h/stride, w/stride)
        return result


class _FoldedHead(nn.Module):
    taps: Tensor

    def __init__(self, head: PSPHead, fusion: _Fusion) -> None:
        super().__init__()
        self.align_corners = head.align_corners
        branches = [branch for branch in head.pyramid.branches if isinstance(branch, PyramidBranch)]
        self.bins = [branch.bin_size for branch in branches]
        self.branches = nn.ModuleList(fusion.fold(branch.conv, branch.bn) for branch in branches)
        weight, bias = _folded_weights(head.conv, head.bn)  # (C/4, 2C, 3, 3), (C/4,)
        map_channels = head.conv.in_channels - head.pyramid.out_channels
        self.conv = fusion.convolution(weight[:, :map_channels], bias, head.conv)
        self.register_buffer(
            "taps", weight[:, map_channels:].to(fusion.dtype).contiguous(memory_format=torch.channels_last)
        )
        assert head.classifier.bias is not None
        self.classifier = fusion.convolution(head.classifier.weight, head.classifier.bias, head.classifier, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> logits (N, K, h, w)."""
        grids = [branch(grid) for branch, grid in zip(self.branches, average_grids(x, self.bins))]
        spread = convolve_upsampled(grids, self.taps, x.shape[-2:], self.align_corners)  # (N, C/4, h, w)
        logits: Tensor = self.classifier(self.conv(x, spread))  # (N, K, h, w)
        return logits


class FusedConv2d(nn.Module):
    """A convolution with its bias, an optional addition and an optional ReLU.

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
        """(N, C, h, w) -> (N, O, h', w'), plus `added` (N, O, h', w') before ReLU.

        `added` may be overwritten.
        """
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        if added is not None:
            y = y + added
        return F.relu(y) if self.relu else y


class OneDnnConv2d(FusedConv2d):
    """FusedConv2d as one oneDNN operation on CPUs.

    The best memory layout of the weight depends on the size of the map. The weight is packed for a size that occurs
    twice in a row and the packed weight is kept; other sizes reorder it in every call.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._last_size: torch.Size | None = None
        self._packed: tuple[torch.Size, Tensor] | None = None  # replaced atomically: thread-safe

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Compute FusedConv2d.forward."""
        arguments = (self._weight_for(x), self.bias, self.padding, self.stride, self.dilation, 1)
        relu = "relu" if self.relu else None
        if added is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, *arguments, relu or "none", [], "")
        else:
            y = torch.ops.mkldnn._convolution_pointwise_.binary(added, x, *arguments, "add", 1.0, relu, [], None)
        result: Tensor = y
        return result

    def _weight_for(self, x: Tensor) -> Tensor:
        packed, last_size = self._packed, self._last_size
        self._last_size = x.shape
        if packed is not None and packed[0] == x.shape:
            return packed[1]
        if x.shape != last_size:
            return self.weight
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        weight: Tensor = reorder(self.weight.to_mkldnn(), self.padding, self.stride, self.dilation, 1, tuple(x.shape))
        self._packed = (x.shape, weight)
        return weight


def _has_onednn(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not _has_onednn_operations():
        return False
    is_bfloat16 = weight.dtype == torch.bfloat16
    return weight.dtype == torch.float32 or (is_bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache(maxsize=1)
def _has_onednn_operations() -> bool:
    """Return whether the private operations exist. Without them only speed is lost."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        torch.ops.mkldnn._convolution_pointwise_.binary  # noqa: B018
        torch.ops.mkldnn._convolution_pointwise  # noqa: B018
        torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: B018
        torch._C._nn.mkldnn_reorder_conv2d_weight  # noqa: B018
    except (AttributeError, RuntimeError):  # a missing operation, depending on the version
        return False
    return True


def _folded_weights(conv: nn.Conv2d, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution equal to a convolution and its batch norm in evaluation mode."""
    assert isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()  # (O,)
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    bias = bn.bias.double() - bn.running_mean.double() * scale
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)
