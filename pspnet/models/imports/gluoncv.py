"""GluonCV's PSPNet on MXNet, and with it the built-in SageMaker algorithm's own model.tar.gz.

Facts of the network: RGB images normalised by ImageNet's statistics; BilinearResize2D aligns corners; the first block
of a dilated layer keeps the previous layer's dilation; Gluon's BatchNorm has PyTorch's eps of 1e-5. Its training form
up-samples the pyramid to crop/8 and so takes images of the crop's size alone; `predict` up-samples to the map's own
size, and so does our network.

The built-in's archive holds `model_algo-1` (the last epoch's parameters), `model_best.params` and `hyperparams.json`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone, detect_heads
from pspnet.models.imports.mxnet_params import read_mxnet_params

PROGRAM = "gluoncv"

_PARAMETER_NAMES = ("model_algo-1", "model_best.params")
_HYPERPARAMETERS = "hyperparams.json"

_BATCH_NORM = {"weight": "gamma", "bias": "beta"}
# `conv1` is a Sequential of the stem up to the last convolution, whose batch norm is `bn1`.
_DEEP_STEM = (
    ("backbone.stem.conv1.", "conv1.0."),
    ("backbone.stem.bn1.", "conv1.1."),
    ("backbone.stem.conv2.", "conv1.3."),
    ("backbone.stem.bn2.", "conv1.4."),
    ("backbone.stem.conv3.", "conv1.6."),
    ("backbone.stem.bn3.", "bn1."),
)
_PYRAMID = tuple(
    (f"head.pyramid.branches.{branch}.{kind}.", f"head.psp.conv{branch + 1}.{place}.")
    for branch in range(4)
    for place, kind in enumerate(("conv", "bn"))
)
_HEADS = tuple(
    (f"{ours}.{part}.", f"{theirs}.block.{place}.")
    for ours, theirs in (("head", "head"), ("auxiliary_head", "auxlayer"))
    for place, part in ((0, "conv"), (1, "bn"), (4, "classifier"))
)


def _layout(stem: tuple[tuple[str, str], ...]) -> Layout:
    return Layout((*stem, ("backbone.", ""), *_PYRAMID, *_HEADS), _BATCH_NORM, ignored=("fc.",))


_LAYOUTS = {
    "deep": _layout(_DEEP_STEM),
    "deep-narrow": _layout(_DEEP_STEM),
    "conv7": _layout((("backbone.stem.", ""),)),
}

_CONVENTIONS = {"output_stride": 8, "align_corners": True, "contract_dilation": True}


def read(path: Path) -> ForeignWeights:
    """Read a parameter file, or the built-in algorithm's model.tar.gz. Raises WeightsError."""
    content, source, hyperparameters = _open(path)
    algorithm = hyperparameters.get("algorithm", "psp")
    if algorithm != "psp":
        raise WeightsError(f"{path}: was trained with algorithm {algorithm}; only psp can be imported.")
    state = read_mxnet_params(content, source)
    _refuse_others(state, source)
    architecture = detect_backbone(state, _LAYOUTS, source)
    layout = _LAYOUTS[architecture["stem"]]
    complete = any(name.startswith("head.") for name in state)
    if complete:
        architecture.update(detect_heads(state, layout, source))
    details = {"hyperparameters": hyperparameters} if hyperparameters else {}
    return ForeignWeights(
        source, PROGRAM, state, layout, {**architecture, **_CONVENTIONS}, complete=complete, details=details
    )


def _refuse_others(state: Mapping[str, Tensor], source: str) -> None:
    names = list(state)
    if names and not any("." in name for name in names):
        raise WeightsError(
            f"{source}: has the names of MXNet's symbols ({names[0]}, ...), as export and save_params write them. "
            "Save it with GluonCV's save_parameters."
        )
    if any(name.startswith("head.") for name in names) and not any(name.startswith("head.psp.") for name in names):
        found = "DeepLab" if any(".aspp." in name or name.startswith("head.aspp") for name in names) else "FCN"
        raise WeightsError(f"{source}: GluonCV's {found}, which is no PSPNet. Only algorithm psp can be imported.")


def _open(path: Path) -> tuple[bytes, str, dict[str, Any]]:
    """The parameter file's bytes, its name for messages, and the hyperparameters that an archive holds."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start[:2] == b"\x1f\x8b" or tarfile.is_tarfile(path):
            return _open_archive(path)
        return path.read_bytes(), str(path), {}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _open_archive(path: Path) -> tuple[bytes, str, dict[str, Any]]:
    contents: dict[str, bytes] = {}
    names = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name[2:] if member.name.startswith("./") else member.name
                names.append(name)
                wanted = name == _HYPERPARAMETERS or (name in _PARAMETER_NAMES and _PARAMETER_NAMES[0] not in contents)
                file = archive.extractfile(member) if wanted else None
                if file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise WeightsError(f"{path}: a damaged or truncated archive ({error}). Copy or download it again.") from error
    found = next((name for name in _PARAMETER_NAMES if name in contents), None)
    if found is None:
        listing = ", ".join(names[:5]) or "nothing"
        raise WeightsError(
            f"{path}: the archive has no {_PARAMETER_NAMES[0]}, only {listing}. Expected the model.tar.gz of the "
            "built-in semantic segmentation algorithm."
        )
    return contents[found], f"{path}/{found}", _hyperparameters(path, contents.get(_HYPERPARAMETERS, b"{}"))


def _hyperparameters(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise WeightsError(
            f"{path}: its {_HYPERPARAMETERS} is no JSON ({error}). Copy or download it again."
        ) from error
    return found if isinstance(found, dict) else {}
