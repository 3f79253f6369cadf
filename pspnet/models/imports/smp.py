"""Weights of segmentation-models-pytorch: the ResNet encoder of any model, as a backbone.

Its PSPNet is another network (three encoder stages, a decoder on stride 8), so decoders are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone
from pspnet.models.imports.torch_file import TorchFile

PROGRAM = "segmentation-models-pytorch"

# Most of its models have no dilation. Its DeepLabV3 and PAN dilate every block, which no name in the file shows.
_CONVENTIONS = {"contract_dilation": True}

_IGNORED = ("decoder.", "segmentation_head.", "classification_head.", "fc.", "encoder.fc.")


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are from a whole model; a single encoder has torchvision's names."""
    return any(name.startswith("encoder.layer1.") for name in state)


def convert(file: TorchFile) -> ForeignWeights:
    """Detect the architecture of the encoder of a whole model or of a single encoder. Raises WeightsError."""
    prefix = "encoder." if recognises(file.state) else ""
    layout = Layout((("backbone.stem.", prefix), ("backbone.", prefix)), ignored=_IGNORED)
    architecture = detect_backbone(file.state, {"conv7": layout}, file.path, basic=True)
    return ForeignWeights(file.path, PROGRAM, file.state, layout, {**architecture, **_CONVENTIONS}, complete=False)
