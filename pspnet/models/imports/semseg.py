"""Weights of hszhao/semseg: PSPNet-50 and -101 (train_epoch_*.pth) and their ImageNet backbones.

Conventions: RGB images normalised by ImageNet's statistics on the scale 0..255; every interpolation aligns corners; all
blocks of a dilated layer have the full dilation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone, detect_heads
from pspnet.models.imports.torch_file import TorchFile

PROGRAM = "semseg"

# `layer0` of the whole network is a Sequential of the stem: convolution, batch norm and ReLU three times.
_STEM = tuple(
    (f"backbone.stem.{kind}{number}.", f"layer0.{3 * number - 3 + index}.")
    for number in (1, 2, 3)
    for index, kind in enumerate(("conv", "bn"))
)
_PYRAMID = tuple(
    (f"head.pyramid.branches.{branch}.{kind}.", f"ppm.features.{branch}.{index}.")
    for branch in range(4)
    for index, kind in ((1, "conv"), (2, "bn"))
)
_HEADS = tuple(
    (f"{ours}.{part}.", f"{theirs}.{index}.")
    for ours, theirs in (("head", "cls"), ("auxiliary_head", "aux"))
    for index, part in ((0, "conv"), (1, "bn"), (4, "classifier"))
)
_WHOLE = Layout((*_STEM, ("backbone.", ""), *_PYRAMID, *_HEADS))
_BACKBONE = Layout((("backbone.stem.", ""), ("backbone.", "")), ignored=("fc.",))

_CONVENTIONS = {"output_stride": 8, "align_corners": True, "contract_dilation": False}


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are from semseg's network or from a backbone with three convolutions in the stem."""
    return "layer0.0.weight" in state or {"conv3.weight", "layer1.0.conv1.weight"} <= set(state)


def convert(file: TorchFile) -> ForeignWeights:
    """Detect the architecture of a whole network or a backbone. Raises WeightsError."""
    state, source = file.state, file.path
    if not any(name.startswith("layer0.") for name in state):
        architecture = detect_backbone(state, {"deep": _BACKBONE, "conv7": _BACKBONE}, source)
        return ForeignWeights(source, PROGRAM, state, _BACKBONE, {**architecture, **_CONVENTIONS}, complete=False)
    if any(name.startswith("psa.") for name in state):
        raise WeightsError(f"{source}: semseg's PSANet, not a PSPNet. Only PSPNet can be imported.")
    architecture = {**detect_backbone(state, {"deep": _WHOLE}, source), **detect_heads(state, _WHOLE, source)}
    return ForeignWeights(source, PROGRAM, state, _WHOLE, {**architecture, **_CONVENTIONS}, complete=True)
