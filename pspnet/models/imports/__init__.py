"""Weights from other programs: read without running anything of them, mapped by name, and strictly.

`read_weights` takes a file and the program that wrote it; `recognise` says which program that may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Callable

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.imports import gluoncv, mmsegmentation, semseg, smp, torchvision
from pspnet.models.imports.layout import ForeignWeights
from pspnet.models.imports.torch_file import TorchFile, is_torch_file, read_torch_file

# In the order in which names are looked at.
_PYTORCH: dict[str, tuple[Callable[[Mapping[str, Tensor]], bool], Callable[[TorchFile], ForeignWeights]]] = {
    "smp": (smp.recognises, smp.convert),
    "mmsegmentation": (mmsegmentation.recognises, mmsegmentation.convert),
    "semseg": (semseg.recognises, semseg.convert),
    "torchvision": (torchvision.recognises, torchvision.convert),
}
PROGRAMS = ("torchvision", "semseg", "mmsegmentation", "smp", "gluoncv")


def read_weights(path: Path, program: str) -> ForeignWeights:
    """Read another program's weights; `build` of the result makes our network of them.

    Args:
        path: a file of weights, or for gluoncv the built-in algorithm's model.tar.gz.
        program: one of PROGRAMS.

    Raises:
        WeightsError: another program's file (the text says whose), another network, a damaged file.
    """
    if program not in PROGRAMS:
        raise WeightsError(f"program is {program!r}: expected one of {', '.join(PROGRAMS)}.")
    if program == "gluoncv" and not is_torch_file(path):
        return gluoncv.read(path)
    file = read_torch_file(path)
    likely = recognise(file.state)
    if program == "gluoncv":
        fix = f": use --from {likely}" if likely else ""
        raise WeightsError(f"{path}: a file of PyTorch's, not the MXNet parameters of GluonCV{fix}.")
    # An encoder of smp's by itself has torchvision's names.
    if likely not in (None, program) and (likely, program) != ("torchvision", "smp"):
        raise WeightsError(f"{path}: its names are those of {likely}, not of {program}: use --from {likely}.")
    _, convert = _PYTORCH[program]
    return convert(file)


def read_backbone(path: Path) -> ForeignWeights:
    """Read a PyTorch file whose program is found out by its names, to start a backbone from.

    Raises:
        WeightsError: the names are no known program's, another network, a damaged file.
    """
    file = read_torch_file(path)
    likely = recognise(file.state)
    if likely is None:
        raise WeightsError(f"{path}: its names are not those of {', '.join(_PYTORCH)}: no ResNet that is known.")
    _, convert = _PYTORCH[likely]
    return convert(file)


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The program that has such names, or None."""
    return next((program for program, (recognises, _) in _PYTORCH.items() if recognises(state)), None)
