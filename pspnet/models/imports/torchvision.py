"""Weights of torchvision: ResNet-18, -34, -50 and -101 as a backbone; FCN and DeepLabV3 as complete networks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone, detect_heads
from pspnet.models.imports.torch_file import TorchFile

PROGRAM = "torchvision"

# Trained without dilation: a contracted one computes the same features on a finer grid.
_CONVENTIONS = {"contract_dilation": True}

_LAYOUT = Layout((("backbone.stem.", ""), ("backbone.", "")), ignored=("fc.",))
# The networks are torchvision's, so only the stem and the heads have other names here.
_NETWORK = Layout(
    (
        ("backbone.stem.", "backbone."), ("backbone.", "backbone."),
        ("head.classifier.", "classifier.4."), ("head.", "classifier."),
        ("auxiliary_head.classifier.", "aux_classifier.4."), ("auxiliary_head.", "aux_classifier."),
    )
)  # fmt: skip


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are from torchvision's ResNet or a segmentation network on it."""
    return _is_segmentation(state) or (
        "conv1.weight" in state and "layer1.0.conv1.weight" in state and "conv2.weight" not in state
    )


def convert(file: TorchFile) -> ForeignWeights:
    """Detect the architecture of a backbone or network. Raises WeightsError."""
    if not _is_segmentation(file.state):
        architecture = detect_backbone(file.state, {"conv7": _LAYOUT}, file.path, basic=True)
        return ForeignWeights(file.path, PROGRAM, file.state, _LAYOUT, {**architecture, **_CONVENTIONS}, complete=False)
    backbone = detect_backbone(file.state, {"conv7": _NETWORK}, file.path)["backbone"]
    architecture = {"backbone": backbone, **detect_heads(file.state, _NETWORK, file.path)}
    algorithm = "deeplab" if "classifier.0.convs.0.0.weight" in file.state else "fcn"
    return ForeignWeights(file.path, PROGRAM, file.state, _NETWORK, architecture, complete=True, algorithm=algorithm)


def _is_segmentation(state: Mapping[str, Tensor]) -> bool:
    return "backbone.layer1.0.conv1.weight" in state and any(name.startswith("classifier.") for name in state)
