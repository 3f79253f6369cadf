"""Weights of torchvision's ResNet-18, -34, -50 and -101, in both ImageNet versions, as a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone
from pspnet.models.imports.torch_file import TorchFile

PROGRAM = "torchvision"

# Trained without dilation: a contracted one computes the same features on a finer grid.
_CONVENTIONS = {"contract_dilation": True}

_LAYOUT = Layout((("backbone.stem.", ""), ("backbone.", "")), ignored=("fc.",))


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are from torchvision's ResNet or a segmentation network on it."""
    return _is_segmentation(state) or (
        "conv1.weight" in state and "layer1.0.conv1.weight" in state and "conv2.weight" not in state
    )


def convert(file: TorchFile) -> ForeignWeights:
    """Detect the architecture of the backbone. Raises WeightsError."""
    if _is_segmentation(file.state):
        raise WeightsError(f"{file.path}: torchvision's FCN or DeepLabV3, not a PSPNet. Import its ResNet.")
    architecture = detect_backbone(file.state, {"conv7": _LAYOUT}, file.path, basic=True)
    return ForeignWeights(file.path, PROGRAM, file.state, _LAYOUT, {**architecture, **_CONVENTIONS}, complete=False)


def _is_segmentation(state: Mapping[str, Tensor]) -> bool:
    return "backbone.layer1.0.conv1.weight" in state and any(name.startswith("classifier.") for name in state)
