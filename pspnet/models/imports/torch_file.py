"""Safe reader of state dicts in torch.save and safetensors files: no code in a file runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.inert_pickle import LEGACY_START, ZIP_START, load_inert

# Keys of the weights in checkpoints.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_MXNET_START = b"\x12\x01\x00\x00\x00\x00\x00\x00"


@dataclass(frozen=True)
class TorchFile:
    """`state` maps names, without DataParallel's `module.`, to tensors; `meta` is the metadata of mmengine and mmcv."""

    path: str
    state: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_torch_file(path: Path) -> TorchFile:
    """Read a state dict or a checkpoint with one.

    Raises:
        WeightsError: the file is missing, damaged, of another type, or has no state dict.
    """
    start = _start_of(path)
    if _is_safetensors(start):
        return TorchFile(str(path), _without_module(_read_safetensors(path)))
    if not start.startswith((ZIP_START, LEGACY_START)):
        raise WeightsError(f"{path}: {_kind(start)}. Expected a file of torch.save (.pth, .pt) or .safetensors.")
    try:
        content = load_inert(path)
        state = _without_module(_state_dict(content, path))
    except WeightsError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise any exception
        details = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: damaged or truncated ({details}). Copy or download it again.") from error
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return TorchFile(str(path), state, meta if isinstance(meta, Mapping) else {})


def is_torch_file(path: Path) -> bool:
    """Return whether a file begins like a torch.save or safetensors file. WeightsError if it cannot be read."""
    start = _start_of(path)
    return _is_safetensors(start) or start.startswith((ZIP_START, LEGACY_START))


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the mapping of names to tensors: the checkpoint itself or one of _STATE_KEYS."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in _STATE_KEYS if key in content]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): value for name, value in candidate.items()}
    if isinstance(content, Mapping):
        found = f"entries {', '.join(map(str, list(content)[:5]))}" if content else "nothing"
    else:
        found = f"a {type(content).__name__}"
    raise WeightsError(
        f"{path}: has no state dict, but {found}. Expected a mapping of names to tensors, at the top level or under "
        f"{', '.join(_STATE_KEYS)}: save model.state_dict()."
    )


def _without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `module.` of DataParallel and DistributedDataParallel."""
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: value for name, value in state.items()}
    return dict(state)


def _start_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except IsADirectoryError:
        raise WeightsError(f"{path}: a folder; expected a weights file.") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _is_safetensors(start: bytes) -> bool:
    """A safetensors file starts with eight bytes of header length and the header's JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or truncated ({error}). Copy or download it again.") from error
    return state


def _kind(start: bytes) -> str:
    """Describe a file that torch.save did not write."""
    if start.startswith(_MXNET_START):
        return "an MXNet parameter file; use `--from gluoncv`"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive; use `--from gluoncv` for the built-in algorithm's model.tar.gz"
    if not start:
        return "an empty file"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "a text file, possibly the web page of a failed download"
    return "not a known weights file"
