"""hszhao/semseg: whole PSPNet-50 and -101 (train_epoch_*.pth), and the ImageNet backbones that it trains from.

Its images are RGB, normalised by ImageNet's statistics on the scale 0..255; every interpolation aligns corners; all
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
    (f"backbone.stem.{kind}{number}.", f"layer0.{3 * number - 3 + place}.")
    for number in (1, 2, 3)
    for place, kind in enumerate(("conv", "bn"))
)
_PYRAMID = tuple(
    (f"head.pyramid.branches.{branch}.{kind}.", f"ppm.features.{branch}.{place}.")
    for branch in range(4)
    for place, kind in ((1, "conv"), (2, "bn"))
)
_HEADS = tuple(
    (f"{ours}.{part}.", f"{theirs}.{place}.")
    for ours, theirs in (("head", "cls"), ("auxiliary_head", "aux"))
    for place, part in ((0, "conv"), (1, "bn"), (4, "classifier"))
)
_WHOLE = Layout((*_STEM, ("backbone.", ""), *_PYRAMID, *_HEADS))
_BACKBONE = Layout((("backbone.stem.", ""), ("backbone.", "")), ignored=("fc.",))

_CONVENTIONS = {"output_stride": 8, "align_corners": True, "contract_dilation": False}


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are semseg's: of the whole network, or of a backbone with three convolutions in its stem."""
    return "layer0.0.weight" in state or {"conv3.weight", "layer1.0.conv1.weight"} <= set(state)


def convert(file: TorchFile) -> ForeignWeights:
    """The weights of a whole network or a backbone with what they say of it. Raises WeightsError."""
    state, source = file.state, file.path
    if not any(name.startswith("layer0.") for name in state):
        architecture = detect_backbone(state, {"deep": _BACKBONE, "conv7": _BACKBONE}, source)
        return ForeignWeights(source, PROGRAM, state, _BACKBONE, {**architecture, **_CONVENTIONS}, complete=False)
    if any(name.startswith("psa.") for name in state):
        raise WeightsError(f"{source}: semseg's PSANet, which is another network. Import a PSPNet.")
    architecture = {**detect_backbone(state, {"deep": _WHOLE}, source), **detect_heads(state, _WHOLE, source)}
    return ForeignWeights(source, PROGRAM, state, _WHOLE, {**architecture, **_CONVENTIONS}, complete=True)
