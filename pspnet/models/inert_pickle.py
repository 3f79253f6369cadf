"""Restricted reader of torch.save files: nothing that a file names is imported or called.

torch.load does the reading, with this module as its `pickle_module`, so both of its formats work on every version of
PyTorch, also with the foreign objects that torch.load(weights_only=True) rejects: mmengine's checkpoints hold log
buffers, NumPy numbers and schedulers next to the weights. `Unpickler.find_class` returns tensors' rebuild functions,
OrderedDict and `Placeholder`; the latter replaces every other class and function.

Two paths of torch.load bypass the restriction and are refused before it is called: TorchScript archives, which it
passes to torch.jit.load, and tar archives of PyTorch before 0.1.10, whose members it extracts.
"""

from __future__ import annotations

import inspect
import pickle
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from pspnet.errors import WeightsError

# First pickle of a file from before PyTorch 1.6: protocol 2, then the magic number as a ten-byte integer.
LEGACY_START = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
ZIP_START = b"PK\x03\x04"


class Placeholder:
    """Replaces every foreign class and function. Accepts all that a pickle does to it and stores nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Any:
        return super().__new__(cls)

    def ignore(self, *_: object) -> None:
        """Drop a state or an entry. `self` is the state itself if a pickle calls this on the class."""

    __setstate__ = __setitem__ = append = extend = add = ignore


# Classes, because a pickle could change the attributes of a function.
class _Tensor(Placeholder):
    def __new__(cls, storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Any:
        return torch._utils._rebuild_tensor(storage, offset, size, stride)  # raises if the view exceeds the storage


class _Parameter(Placeholder):
    def __new__(cls, data: Any, *_: object) -> Any:
        return data


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
}


class Unpickler(pickle.Unpickler):
    """Unpickler of plain data and tensors. torch.load derives its own from it, which resolves storage types."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the substitute for a name in the pickle. Never imports."""
        return _KNOWN.get((module, name), Placeholder)

    def __setattr__(self, name: str, value: Any) -> None:
        """Restrict the `persistent_load` that torch.load sets to storages: it could read and write source files."""

        def load_storage(pid: Any) -> Any:
            if not isinstance(pid, tuple) or pid[:1] != ("storage",):
                raise pickle.UnpicklingError("an entry that is not a tensor storage")
            return value(pid)

        super().__setattr__(name, load_storage if name == "persistent_load" else value)


def load(file: Any, **options: Any) -> Any:
    """Replace pickle.load for torch.load."""
    return Unpickler(file, **options).load()


def load_inert(path: Path) -> Any:
    """Return the content of a torch.save file, with tensors on the CPU and Placeholders for foreign objects.

    Raises:
        WeightsError: a TorchScript program, a tar archive or another kind of file.
        Exception: any kind, from torch.load, for a damaged file.
    """
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_START))
    if start.startswith(ZIP_START):
        # The reader of torch.load, so that both find the same records.
        if "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise WeightsError(f"{path}: a TorchScript program; it cannot be imported. Save model.state_dict().")
    elif start != LEGACY_START or tarfile.is_tarfile(path):
        raise WeightsError(f"{path}: not a file of torch.save since PyTorch 0.1.10. Save it with a newer one.")
    known = inspect.signature(torch.load).parameters  # weights_only: PyTorch 1.13 and later
    options = {"weights_only": False} if "weights_only" in known else {}
    return torch.load(str(path), map_location="cpu", pickle_module=sys.modules[__name__], **options)
