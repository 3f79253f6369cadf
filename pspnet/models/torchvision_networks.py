"""torchvision's FCN and DeepLabV3 with the interface of PSPNet.

J. Long et al., Fully Convolutional Networks for Semantic Segmentation, arXiv 1411.4038; L.-C. Chen et al., Rethinking
Atrous Convolution for Semantic Image Segmentation (DeepLabV3), arXiv 1706.05587. Both use the ResNet of output stride 8
that torchvision builds, with its dilation pattern.

Shape letters:
    N  images in the batch
    H  image height in pixels          W  image width in pixels
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pspnet.errors import PspnetError
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.models.pyramid import SingleValueBatchNorm2d

_LAYERS = ("layer1", "layer2", "layer3", "layer4")


class TorchvisionBackbone(nn.Module):
    """torchvision's dilated ResNet with the parameter names and interface of `pspnet.models.resnet.ResNet`.

    Args:
        features: backbone of a torchvision segmentation model, name -> module.
    """

    stem_name = "conv7"
    output_stride = 8

    def __init__(self, features: nn.ModuleDict) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict((name, features[name]) for name in ("conv1", "bn1", "relu", "maxpool")))
        self.layer1, self.layer2, self.layer3, self.layer4 = (features[name] for name in _LAYERS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised RGB -> features of layer3 (N, 1024, H/8, W/8) and layer4 (N, 2048, H/8, W/8)."""
        x = self.stem(x)  # (N, 64, H/4, W/4)
        x = self.layer1(x)  # (N, 256, H/4, W/4)
        x = self.layer2(x)  # (N, 512, H/8, W/8)
        layer3: Tensor = self.layer3(x)  # (N, 1024, H/8, W/8)
        layer4: Tensor = self.layer4(layer3)  # (N, 2048, H/8, W/8)
        return layer3, layer4


class FCN(SegmentationNetwork):
    """torchvision's FCN: a 3x3 convolution and a classifier on layer4; the auxiliary head has the same on layer3."""


class DeepLabV3(SegmentationNetwork):
    """torchvision's DeepLabV3: atrous spatial pyramid pooling (rates 12, 24, 36) on layer4 and FCN's auxiliary head."""


# torchvision's basic blocks support no dilation.
_BACKBONES = ("resnet-50", "resnet-101")
_NETWORKS = {"fcn": FCN, "deeplab": DeepLabV3}
_BUILDERS = {"fcn": "fcn", "deeplab": "deeplabv3"}


def build_torchvision(
    algorithm: str,
    num_classes: int,
    backbone: str = "resnet-50",
    auxiliary_head: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> SegmentationNetwork:
    """Build a randomly initialised FCN or DeepLabV3 with torchvision's layers and initialisation.

    Args:
        algorithm: "fcn" or "deeplab".
        num_classes: classes K, 1 or more.
        backbone: "resnet-50" or "resnet-101".
        auxiliary_head: whether to build the training-only head on layer3.
        mean: normalisation per channel, RGB, on the scale 0..255.
        std: normalisation per channel, RGB, on the scale 0..255.

    Raises:
        PspnetError: an invalid value, or torchvision is missing.
    """
    if backbone not in _BACKBONES:
        raise PspnetError(f"backbone is {backbone!r}: expected one of {', '.join(_BACKBONES)}.")
    if num_classes < 1:
        raise PspnetError(f"num_classes is {num_classes}: expected 1 or more.")
    builder = getattr(_segmentation_models(algorithm), f"{_BUILDERS[algorithm]}_{backbone.replace('-', '')}")
    built = builder(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=auxiliary_head)
    if algorithm == "deeplab":
        _allow_single_values(built.classifier)
    return _NETWORKS[algorithm](
        TorchvisionBackbone(built.backbone), built.classifier, built.aux_classifier, mean=mean, std=std
    )


def _segmentation_models(algorithm: str) -> Any:
    # Imported lazily: PSPNet is built, loaded and served without torchvision.
    try:
        import torchvision.models.segmentation
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise PspnetError(
            f"algorithm is {algorithm!r}, which needs torchvision, but importing it failed ({error}): install the "
            "torchvision version that matches this torch, or use algorithm psp."
        ) from error
    return torchvision.models.segmentation


def _allow_single_values(head: nn.Sequential) -> None:
    """Let the image pooling branch train on a batch of one image, as the pyramid does. Names and values stay."""
    from torchvision.models.segmentation.deeplabv3 import ASPPPooling

    (branch,) = (module for module in head.modules() if isinstance(module, ASPPPooling))
    (index,) = (index for index, module in enumerate(branch) if isinstance(module, nn.BatchNorm2d))
    branch[index] = SingleValueBatchNorm2d(branch[index].num_features)
