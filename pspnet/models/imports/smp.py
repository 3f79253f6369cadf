"""segmentation-models-pytorch: the ResNet-50 or -101 encoder of any of its models, as a backbone alone.

Its own PSPNet is another network (three encoder stages, a decoder on stride 8), so its decoder is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone
from pspnet.models.imports.torch_file import TorchFile

PROGRAM = "segmentation-models-pytorch"

_IGNORED = ("decoder.", "segmentation_head.", "classification_head.", "fc.", "encoder.fc.")


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a whole model; an encoder by itself has torchvision's names."""
    return any(name.startswith("encoder.layer1.") for name in state)


def convert(file: TorchFile) -> ForeignWeights:
    """The weights of a whole model's or a single encoder with what they say of it. Raises WeightsError."""
    prefix = "encoder." if recognises(file.state) else ""
    layout = Layout((("backbone.stem.", prefix), ("backbone.", prefix)), ignored=_IGNORED)
    architecture = detect_backbone(file.state, {"conv7": layout}, file.path)
    return ForeignWeights(file.path, PROGRAM, file.state, layout, architecture, complete=False)
