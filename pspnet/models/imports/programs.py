"""Readers of other programs' weights and detection of the program that wrote a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Callable

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.constants import PROGRAMS
from pspnet.models.imports import gluoncv, mmsegmentation, semseg, smp, torchvision
from pspnet.models.imports.layout import ForeignWeights
from pspnet.models.imports.torch_file import TorchFile, is_torch_file, read_torch_file

# Detection tries them in this order.
_PYTORCH: dict[str, tuple[Callable[[Mapping[str, Tensor]], bool], Callable[[TorchFile], ForeignWeights]]] = {
    "smp": (smp.recognises, smp.convert),
    "mmsegmentation": (mmsegmentation.recognises, mmsegmentation.convert),
    "semseg": (semseg.recognises, semseg.convert),
    "torchvision": (torchvision.recognises, torchvision.convert),
}


def read_weights(path: Path, program: str) -> ForeignWeights:
    """Read another program's weights; `build()` of the result returns our network with them.

    Args:
        path: a weights file, or for gluoncv the built-in algorithm's model.tar.gz.
        program: one of PROGRAMS.

    Raises:
        WeightsError: the file is damaged, or holds another network or another program's weights.
    """
    if program not in PROGRAMS:
        raise WeightsError(f"program is {program!r}: expected one of {', '.join(PROGRAMS)}.")
    if program == "gluoncv" and not is_torch_file(path):
        return gluoncv.read(path)
    file = read_torch_file(path)
    likely = detect_program(file.state)
    if program == "gluoncv":
        fix = f": use --from {likely}" if likely else ""
        raise WeightsError(f"{path}: a PyTorch file, not the MXNet parameters of GluonCV{fix}.")
    # A single smp encoder has torchvision's names.
    if likely not in (None, program) and (likely, program) != ("torchvision", "smp"):
        raise WeightsError(f"{path}: its names are from {likely}, not {program}: use --from {likely}.")
    _, convert = _PYTORCH[program]
    return convert(file)


def read_backbone(path: Path) -> ForeignWeights:
    """Read a PyTorch file to initialise a backbone from; its program is detected from the names.

    Raises:
        WeightsError: the file is damaged, or holds another network or names of an unknown program.
    """
    file = read_torch_file(path)
    likely = detect_program(file.state)
    if likely is None:
        raise WeightsError(f"{path}: its names match none of {', '.join(_PYTORCH)}. Expected a ResNet of one of them.")
    _, convert = _PYTORCH[likely]
    return convert(file)


def detect_program(state: Mapping[str, Tensor]) -> str | None:
    """Return the program whose names these are, or None."""
    return next((program for program, (recognises, _) in _PYTORCH.items() if recognises(state)), None)
