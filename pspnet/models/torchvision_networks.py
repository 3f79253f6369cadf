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
from pspnet.models.constants import BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.models.pyramid import SingleValueBatchNorm2d

_LAYERS = ("layer1", "layer2", "layer3", "layer4")


class TorchvisionBackbone(nn.Module):
    """torchvision's dilated ResNet under the names and the interface of `pspnet.models.resnet.ResNet`.

    Args:
        features: the backbone of a torchvision segmentation model, a mapping of its modules by name.
    """

    stem_name = "conv7"
    output_stride = 8

    def __init__(self, features: nn.ModuleDict) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict((name, features[name]) for name in ("conv1", "bn1", "relu", "maxpool")))
        self.layer1, self.layer2, self.layer3, self.layer4 = (features[name] for name in _LAYERS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised RGB -> layer3's (N, 1024, H/8, W/8) and layer4's (N, 2048, H/8, W/8)."""
        x = self.stem(x)  # (N, 64, H/4, W/4)
        x = self.layer1(x)  # (N, 256, H/4, W/4)
        x = self.layer2(x)  # (N, 512, H/8, W/8)
        layer3: Tensor = self.layer3(x)  # (N, 1024, H/8, W/8)
        layer4: Tensor = self.layer4(layer3)  # (N, 2048, H/8, W/8)
        return layer3, layer4


class FCN(SegmentationNetwork):
    """torchvision's FCN: one 3x3 convolution and the classifier on layer4, the same on layer3 as auxiliary head."""


class DeepLabV3(SegmentationNetwork):
    """torchvision's DeepLabV3: atrous spatial pyramid pooling (rates 12, 24, 36) on layer4, FCN's auxiliary head."""


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
    """A randomly initialised FCN or DeepLabV3, with the mathematics and the initial values of torchvision's.

    Args:
        algorithm: "fcn" or "deeplab".
        num_classes: classes K, 1 or more.
        backbone: "resnet-50" or "resnet-101".
        auxiliary_head: whether to build the head on layer3 that training uses.
        mean: normalisation per channel, RGB, on the scale 0..255.
        std: normalisation per channel, RGB, on the scale 0..255.

    Raises:
        PspnetError: a value that is not allowed, or torchvision is missing.
    """
    if backbone not in BACKBONES:
        raise PspnetError(f"backbone is {backbone!r}: expected one of {', '.join(BACKBONES)}.")
    if num_classes < 1:
        raise PspnetError(f"num_classes is {num_classes}: expected 1 or more.")
    builder = getattr(_segmentation_models(algorithm), f"{_BUILDERS[algorithm]}_{backbone.replace('-', '')}")
    built = builder(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=auxiliary_head)
    if algorithm == "deeplab":
        _let_single_values_pass(built.classifier)
    return _NETWORKS[algorithm](
        TorchvisionBackbone(built.backbone), built.classifier, built.aux_classifier, mean=mean, std=std
    )


def _segmentation_models(algorithm: str) -> Any:
    # Imported here so that PSPNet can be built, loaded and served without torchvision.
    try:
        import torchvision.models.segmentation
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise PspnetError(
            f"algorithm is {algorithm!r}, which is torchvision's, and that cannot be imported ({error}): install the "
            "torchvision that belongs to this torch, or use algorithm psp."
        ) from error
    return torchvision.models.segmentation


def _let_single_values_pass(head: nn.Sequential) -> None:
    """Have the image pooling branch survive a batch of one image, as the pyramid does; names and values stay."""
    from torchvision.models.segmentation.deeplabv3 import ASPPPooling

    (branch,) = (module for module in head.modules() if isinstance(module, ASPPPooling))
    (index,) = (index for index, module in enumerate(branch) if isinstance(module, nn.BatchNorm2d))
    branch[index] = SingleValueBatchNorm2d(branch[index].num_features)
