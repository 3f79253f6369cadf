"""Restricted unpickler of torch.save files whose pickle names foreign classes: it imports and calls none of them.

mmengine's checkpoints hold the state of a training run next to the weights: log buffers, numpy numbers, schedulers.
torch.load(weights_only=True) rejects such files. This reader lets the pickle build dicts, lists, tuples, strings and
numbers, records the storage of each tensor, and replaces everything else by an inert `Placeholder`. No name in the file
is looked up, so no code can run. Only the bytes of requested tensors are read, not those of an optimizer's state.

Both formats of torch.save are supported: zip archives since PyTorch 1.6 and consecutive pickles before.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable

import torch
from torch import Tensor

# First pickle of a file from before PyTorch 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class DamagedError(ValueError):
    """The content of a file does not match its format."""


class Placeholder:
    """Replaces every object of a foreign class. Accepts all that a pickle does to it and stores nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Placeholder:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Drop the state of the foreign object."""

    def __setitem__(self, _: object, __: object) -> None:
        """Drop an entry of a foreign mapping."""

    def append(self, _: object) -> None:
        """Drop an element of a foreign list."""

    def extend(self, _: object) -> None:
        """Drop elements of a foreign list."""

    def add(self, _: object) -> None:
        """Drop an element of a foreign set."""


@dataclass(frozen=True)
class Storage:
    """Storage of one or more tensors: `count` numbers of `dtype` under the name `key`."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.count * torch.empty(0, dtype=self.dtype).element_size()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, content: bytes) -> Tensor:
        """Return the tensor, given the bytes of its storage."""
        if self.storage.count == 0:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(bytearray(content), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset)  # raises if the view exceeds the storage


class InertUnpickler(pickle.Unpickler):
    """Unpickler that builds plain data and StoredTensors; every other name becomes Placeholder."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")  # of str objects from Python 2
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the substitute for a name in the pickle. Never imports."""
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self.rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return self.rebuild_parameter
        return Placeholder

    def persistent_load(self, pid: Any) -> Any:
        """Map ("storage", type, key, device, count), with a sixth entry for views in old files, to a Storage."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise DamagedError("an entry that is not a tensor storage")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0 or any(pid[5:]):
            raise DamagedError("a tensor storage of an unknown kind")
        return self.storages.setdefault(str(key), Storage(dtype, str(key), count))

    def rebuild_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> StoredTensor:
        """Replace the torch function that builds a tensor from a storage."""
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise DamagedError("a tensor without a storage or shape")
        return StoredTensor(storage, offset, tuple(shape), tuple(strides))

    def rebuild_parameter(self, data: Any, *_: object) -> Any:
        """Replace the torch function that builds a parameter from a tensor."""
        return data


def read_untrusted(path: Path, choose: Callable[[Any], dict[str, Any]]) -> tuple[Any, dict[str, Tensor]]:
    """Return the content of a file, with StoredTensors for tensors, and the tensors that `choose` selects.

    Args:
        path: a file written by torch.save.
        choose: content -> name -> StoredTensor; may raise.

    Raises:
        DamagedError, or any exception of pickle and zipfile for damaged files: OSError, EOFError,
        pickle.UnpicklingError, zipfile.BadZipFile, TypeError, ValueError, RuntimeError and others.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, choose)
    with open(path, "rb") as file:
        return _read_legacy(file, choose)


def _read_archive(archive: zipfile.ZipFile, choose: Callable[[Any], dict[str, Any]]) -> tuple[Any, dict[str, Tensor]]:
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise DamagedError("an archive without data.pkl")
    folder = names[0][: -len("data.pkl")]
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise DamagedError("numbers of another byte order")
    with archive.open(names[0]) as file:
        content = InertUnpickler(file).load()
    chosen = choose(content)
    contents: dict[Storage, bytes] = {}
    for stored in chosen.values():
        if stored.storage not in contents:
            entry = archive.getinfo(f"{folder}data/{stored.storage.key}")
            # torch.save does not compress. Rejecting compressed entries keeps small files from claiming much memory.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != stored.storage.size:
                raise DamagedError(f"{entry.filename} has {entry.file_size} bytes, not {stored.storage.size}")
            contents[stored.storage] = archive.read(entry)
    return content, {name: stored.read(contents[stored.storage]) for name, stored in chosen.items()}


def _read_legacy(file: BinaryIO, choose: Callable[[Any], dict[str, Any]]) -> tuple[Any, dict[str, Tensor]]:
    if InertUnpickler(file).load() != LEGACY_MAGIC:
        raise DamagedError("not a torch.save file")
    for _ in ("protocol version", "system"):
        InertUnpickler(file).load()
    unpickler = InertUnpickler(file)
    content = unpickler.load()
    chosen = choose(content)
    wanted = {stored.storage.key for stored in chosen.values()}
    contents = {}
    end = os.fstat(file.fileno()).st_size
    # The storages follow one after another, each preceded by its count.
    for key in InertUnpickler(file).load():
        storage = unpickler.storages[str(key)]
        (count,) = struct.unpack("<q", _read_exactly(file, 8))
        if count != storage.count or file.tell() + storage.size > end:
            raise DamagedError("it ends within a tensor")
        if storage.key in wanted:
            contents[storage.key] = _read_exactly(file, storage.size)
        else:
            file.seek(storage.size, os.SEEK_CUR)
    return content, {name: stored.read(contents[stored.storage.key]) for name, stored in chosen.items()}


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise DamagedError("it ends early")
    return content
