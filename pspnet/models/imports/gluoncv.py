"""Weights of GluonCV's PSPNet on MXNet, which the built-in SageMaker algorithm writes as model.tar.gz.

Conventions of the network: RGB images normalised by ImageNet's statistics; BilinearResize2D aligns corners; the first
block of a dilated layer keeps the previous layer's dilation; Gluon's BatchNorm has PyTorch's eps of 1e-5. In training
it up-samples the pyramid to crop/8, so it accepts images of the crop size only; its `predict` and our network
up-sample to the size of the map.

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
# `conv1` is a Sequential of the stem up to the last convolution; `bn1` is the batch norm after it.
_DEEP_STEM = (
    ("backbone.stem.conv1.", "conv1.0."),
    ("backbone.stem.bn1.", "conv1.1."),
    ("backbone.stem.conv2.", "conv1.3."),
    ("backbone.stem.bn2.", "conv1.4."),
    ("backbone.stem.conv3.", "conv1.6."),
    ("backbone.stem.bn3.", "bn1."),
)
_PYRAMID = tuple(
    (f"head.pyramid.branches.{branch}.{kind}.", f"head.psp.conv{branch + 1}.{index}.")
    for branch in range(4)
    for index, kind in enumerate(("conv", "bn"))
)
_HEADS = tuple(
    (f"{ours}.{part}.", f"{theirs}.block.{index}.")
    for ours, theirs in (("head", "head"), ("auxiliary_head", "auxlayer"))
    for index, part in ((0, "conv"), (1, "bn"), (4, "classifier"))
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
    """Read a parameter file or the built-in algorithm's model.tar.gz. Raises WeightsError."""
    content, source, hyperparameters = _open(path)
    algorithm = hyperparameters.get("algorithm", "psp")
    if algorithm != "psp":
        raise WeightsError(f"{path}: was trained with algorithm {algorithm}. Only psp can be imported.")
    state = read_mxnet_params(content, source)
    _reject_other_networks(state, source)
    architecture = detect_backbone(state, _LAYOUTS, source)
    layout = _LAYOUTS[architecture["stem"]]
    complete = any(name.startswith("head.") for name in state)
    if complete:
        architecture.update(detect_heads(state, layout, source))
    details = {"hyperparameters": hyperparameters} if hyperparameters else {}
    return ForeignWeights(
        source, PROGRAM, state, layout, {**architecture, **_CONVENTIONS}, complete=complete, details=details
    )


def _reject_other_networks(state: Mapping[str, Tensor], source: str) -> None:
    names = list(state)
    if names and not any("." in name for name in names):
        raise WeightsError(
            f"{source}: has names of MXNet symbols ({names[0]}, ...), which export and save_params write. "
            "Save it with GluonCV's save_parameters."
        )
    if any(name.startswith("head.") for name in names) and not any(name.startswith("head.psp.") for name in names):
        found = "DeepLab" if any(".aspp." in name or name.startswith("head.aspp") for name in names) else "FCN"
        raise WeightsError(f"{source}: GluonCV's {found}, not a PSPNet. Only algorithm psp can be imported.")


def _open(path: Path) -> tuple[bytes, str, dict[str, Any]]:
    """Return the bytes of the parameter file, its name for messages, and the hyperparameters of an archive."""
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
        raise WeightsError(f"{path}: damaged or truncated archive ({error}). Copy or download it again.") from error
    found = next((name for name in _PARAMETER_NAMES if name in contents), None)
    if found is None:
        listing = ", ".join(names[:5]) or "nothing"
        raise WeightsError(
            f"{path}: the archive has no {_PARAMETER_NAMES[0]}, but {listing}. Expected the model.tar.gz of the "
            "built-in semantic segmentation algorithm."
        )
    return contents[found], f"{path}/{found}", _hyperparameters(path, contents.get(_HYPERPARAMETERS, b"{}"))


def _hyperparameters(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise WeightsError(
            f"{path}: its {_HYPERPARAMETERS} is not valid JSON ({error}). Copy or download it again."
        ) from error
    return found if isinstance(found, dict) else {}
