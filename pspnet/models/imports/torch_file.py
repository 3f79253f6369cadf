"""State dicts of other programs' files: what torch.save or safetensors wrote, read without running any of it."""

from __future__ import annotations

import inspect
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.imports.inert_pickle import LEGACY_MAGIC, StoredTensor, read_inertly

# Where programs put the weights in a checkpoint that holds more than them.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
# Protocol 2, then the magic number as a ten-byte integer.
_LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
_MXNET_START = b"\x12\x01\x00\x00\x00\x00\x00\x00"


@dataclass(frozen=True)
class TorchFile:
    """`state` maps names, without DataParallel's `module.`, to tensors; `meta` is what mmengine and mmcv store so."""

    path: str
    state: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_torch_file(path: Path) -> TorchFile:
    """Read a state dict, or a checkpoint that holds one.

    Raises:
        WeightsError: the file is missing, of another kind, damaged, or holds no state dict.
    """
    start = _start_of(path)
    if _is_safetensors(start):
        return TorchFile(str(path), _without_module(_read_safetensors(path)))
    if not start.startswith((b"PK", _LEGACY_START)):
        raise WeightsError(f"{path}: {_kind(start)}. Expected a file of torch.save (.pth, .pt) or .safetensors.")
    try:
        if start.startswith(b"PK"):
            _refuse_torchscript(path)
        content, state = _load(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise anything
        details = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: damaged or truncated ({details}). Copy or download it again.") from error
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return TorchFile(str(path), _without_module(state), meta if isinstance(meta, Mapping) else {})


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as those of torch.save or safetensors do. WeightsError where it cannot be read."""
    start = _start_of(path)
    return _is_safetensors(start) or start.startswith((b"PK", _LEGACY_START))


def _load(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Content and state dict. PyTorch's own safe reader first; ours for files that hold more than it lets pass."""
    if "weights_only" in inspect.signature(torch.load).parameters:  # since PyTorch 1.13
        try:
            content = torch.load(str(path), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            pass
        else:
            return content, _state_dict(content, path, Tensor)
    return read_inertly(path, lambda content: _state_dict(content, path, StoredTensor))


def _state_dict(content: Any, path: Path, kind: type) -> dict[str, Any]:
    """The mapping of names to tensors in a checkpoint: the checkpoint itself, or one of _STATE_KEYS."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in _STATE_KEYS if key in content]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, kind) for v in candidate.values()):
            return {str(name): value for name, value in candidate.items()}
    if isinstance(content, Mapping):
        found = f"entries {', '.join(map(str, list(content)[:5]))}" if content else "nothing"
    else:
        found = f"a {type(content).__name__}"
    raise WeightsError(
        f"{path}: holds no state dict, but {found}. Expected names and tensors, by themselves or under "
        f"{', '.join(_STATE_KEYS)}: save model.state_dict()."
    )


def _without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network has them: DataParallel and DistributedDataParallel put `module.` before each."""
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: value for name, value in state.items()}
    return dict(state)


def _start_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except IsADirectoryError:
        raise WeightsError(f"{path}: a folder; expected a file of weights.") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of header length, then the header's JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or truncated ({error}). Copy or download it again.") from error
    return state


def _refuse_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path}: a TorchScript program, which is not read. Save model.state_dict() instead.")


def _kind(start: bytes) -> str:
    """What a file that torch.save did not write is, in words."""
    if start.startswith(_MXNET_START):
        return "an MXNet parameter file, which `--from gluoncv` reads"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive; the built-in algorithm's model.tar.gz is read by `--from gluoncv`"
    if not start:
        return "an empty file"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "a text file, perhaps the page of a failed download"
    return "no weights file that is known"
