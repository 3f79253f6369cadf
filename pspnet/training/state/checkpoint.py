"""Checkpoints: the full state of a run in one file without pickle, so that a resume is exact.

A checkpoint is a safetensors file. Its tensors are those of the nested state (weights, optimizer, EMA); the rest of the
state is JSON in the file's metadata, with references in place of tensors. Random numbers and learning rate need no
state: they are functions of the seed and the position (see docs/architecture.md).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pspnet.errors import WeightsError
from pspnet.system.atomic_files import atomic_write

FORMAT = "pspnet-checkpoint-1"
LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"

_TENSOR = "__tensor__"
_ITEMS = "__items__"
_TUPLE = "__tuple__"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (nested dicts, lists, tuples, numbers, strings, None, tensors) to `path` atomically.

    Raises OSError if the folder cannot be written or the disk is full; an older checkpoint then stays unchanged.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(state, "", tensors)
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata={"format": FORMAT, "state": json.dumps(tree)})
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(
                f"{path}: the checkpoint could not be written ({error}). Free some space or give another folder with "
                "--checkpoint_dir; an older checkpoint there is unchanged."
            ) from error
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())


def load_checkpoint(path: Path, tensors: bool = True) -> dict[str, Any]:
    """Load the state that `save_checkpoint` wrote, with tensors on the CPU, or None in their place.

    Raises WeightsError for a file that is missing, truncated or not a checkpoint of this program.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such checkpoint. `--resume` takes `auto`, `never` or the path of a .safetensors checkpoint."
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise WeightsError(
                    f"{path}: not a checkpoint of this program (expected the format {FORMAT}, found "
                    f"{metadata.get('format')!r}). A model directory is not a checkpoint: pass it with "
                    "`--model` instead."
                )
            state: dict[str, Any] = _unflatten(json.loads(metadata["state"]), file if tensors else None)
            return state
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: the checkpoint is damaged or truncated ({error}). Remove it, or start again with "
            "`--resume never`."
        ) from error


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the JSON form of `value`; its tensors go to `tensors` under their path in the state."""
    if isinstance(value, torch.Tensor):
        # Cloned: safetensors rejects tensors that share memory, and an optimizer's may.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        # As pairs, because JSON would turn the optimizer's integer keys into strings.
        return {_ITEMS: [[key, _flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    assert value is None or isinstance(value, (bool, int, float, str)), f"{name}: {type(value)} is not storable"
    return value


def _unflatten(tree: Any, file: Any) -> Any:
    if isinstance(tree, list):
        return [_unflatten(item, file) for item in tree]
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return None if file is None else file.get_tensor(tree[_TENSOR])
        if _TUPLE in tree:
            return tuple(_unflatten(item, file) for item in tree[_TUPLE])
        return {key: _unflatten(item, file) for key, item in tree[_ITEMS]}
    return tree
