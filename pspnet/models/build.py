"""Builders of the three networks of the built-in algorithm: psp, fcn and deeplab. They hold the published values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pspnet.errors import PspnetError
from pspnet.models.constants import BACKBONES, BASIC_BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import PSPNet, SegmentationNetwork
from pspnet.models.pyramid import AuxiliaryHead, PSPHead
from pspnet.models.resnet import ResNet, zero_residual_branches
from pspnet.models.torchvision_networks import build_torchvision

ALGORITHMS = ("psp", "fcn", "deeplab")


def build_algorithm(algorithm: str, **architecture: Any) -> SegmentationNetwork:
    """Build a randomly initialised network.

    Args:
        algorithm: "psp", "fcn" or "deeplab".
        architecture: the arguments of `build_model` for psp, of `build_torchvision` for the others.

    Raises:
        PspnetError: an unknown algorithm, an invalid value, or torchvision is missing.
        TypeError: an argument that the algorithm does not take.
    """
    if algorithm not in ALGORITHMS:
        raise PspnetError(f"algorithm is {algorithm!r}: expected one of {', '.join(ALGORITHMS)}.")
    if algorithm == "psp":
        return build_model(**architecture)
    return build_torchvision(algorithm, **architecture)


def build_model(
    num_classes: int,
    backbone: str = "resnet-50",
    stem: str = "conv7",
    output_stride: int = 8,
    align_corners: bool = False,
    auxiliary_head: bool = True,
    width: int = 64,
    dropout: float = 0.1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    contract_dilation: bool = False,
    dilations: Sequence[int] | None = None,
    dilate_both: bool = True,
) -> PSPNet:
    """Build a randomly initialised PSPNet of the published architecture; its residual branches start at 0.

    Args:
        num_classes: classes K, 1 or more.
        backbone: "resnet-18", "resnet-34", "resnet-50" or "resnet-101".
        stem: "conv7" (torchvision), "deep" (three 3x3 convolutions: semseg, GluonCV) or "deep-narrow" (half as wide:
            mmsegmentation).
        output_stride: 8 (published), 16 or 32.
        align_corners: convention of every bilinear up-sampling (semseg: True, mmsegmentation: False).
        auxiliary_head: whether to build the training-only head on layer3.
        width: 64 (published); all channel counts scale with it.
        dropout: probability of dropping a channel before each classifier in training, 0 <= dropout < 1.
        mean: normalisation per channel, RGB, on the scale 0..255.
        std: normalisation per channel, RGB, on the scale 0..255.
        contract_dilation: whether the first block of a dilated layer has half of its dilation (semseg: False;
            mmsegmentation, GluonCV: True). True computes the features of the undilated backbone on a finer grid.
        dilations: of layer3 and layer4; None for those of the output stride. (2, 4) at output stride 32 is
            mmsegmentation's d32.
        dilate_both: whether both convolutions of a basic block are dilated (mmsegmentation: False).

    Raises:
        PspnetError: an invalid value; the message lists the allowed ones.
    """
    if backbone not in BACKBONES:
        raise PspnetError(f"backbone is {backbone!r}: expected one of {', '.join(BACKBONES)}.")
    if num_classes < 1:
        raise PspnetError(f"num_classes is {num_classes}: expected 1 or more.")
    if not 0 <= dropout < 1:
        raise PspnetError(f"dropout is {dropout}: expected 0 <= dropout < 1.")
    basic = backbone in BASIC_BACKBONES
    features = ResNet(BACKBONES[backbone], output_stride, stem, width, contract_dilation, basic, dilations, dilate_both)
    zero_residual_branches(features)
    head = PSPHead(features.out_channels, num_classes, align_corners, dropout)
    auxiliary = AuxiliaryHead(features.layer3_channels, num_classes, dropout) if auxiliary_head else None
    return PSPNet(features, head, auxiliary, align_corners, mean, std)
