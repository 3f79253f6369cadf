"""Tensors out of a torch.save file whose pickle names foreign classes, without importing or calling any of them.

mmengine's checkpoints hold the state of a whole training run beside the weights: log buffers, numpy numbers,
schedulers. torch.load(weights_only=True) refuses such files altogether. This reader lets the pickle build dicts, lists,
tuples, strings and numbers, notes where each tensor's bytes lie, and puts an inert `Placeholder` wherever the pickle
names anything else. Nothing that the file names is looked up, so nothing of it can run. The bytes of tensors that
nobody asks for, such as an optimizer's, are not read.

Both formats of torch.save are read: a zip archive since PyTorch 1.6, consecutive pickles before.
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

# The first pickle of a file from before PyTorch 1.6.
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
    """The file does not hold what its format promises."""


class Placeholder:
    """Stands for every object of a foreign class. Takes whatever a pickle does to such an object and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Placeholder:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """State of the foreign object: dropped."""

    def __setitem__(self, _: object, __: object) -> None:
        """Entry of a foreign mapping: dropped."""

    def append(self, _: object) -> None:
        """Element of a foreign list: dropped."""

    def extend(self, _: object) -> None:
        """Elements of a foreign list: dropped."""

    def add(self, _: object) -> None:
        """Element of a foreign set: dropped."""


@dataclass(frozen=True)
class Storage:
    """The bytes of one or more tensors: `count` numbers of `dtype` under the name `key`."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.count * torch.empty(0, dtype=self.dtype).element_size()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose bytes have not been read yet: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, content: bytes) -> Tensor:
        """The tensor, from its storage's bytes."""
        if self.storage.count == 0:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(bytearray(content), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset)  # raises where the view leaves the storage


class InertUnpickler(pickle.Unpickler):
    """Builds plain data and StoredTensors; every other name of the pickle becomes Placeholder."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")  # what a str of Python 2 is read as
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle. Never imports."""
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self.note_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return self.note_parameter
        return Placeholder

    def persistent_load(self, pid: Any) -> Any:
        """("storage", type, key, device, count), and in old files a sixth entry for views -> Storage."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise DamagedError("an entry that is no tensor's storage")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0 or any(pid[5:]):
            raise DamagedError("a tensor's storage of an unknown kind")
        return self.storages.setdefault(str(key), Storage(dtype, str(key), count))

    def note_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> StoredTensor:
        """Stands for torch's function that makes a tensor from a storage."""
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise DamagedError("a tensor without a storage or shape")
        return StoredTensor(storage, offset, tuple(shape), tuple(strides))

    def note_parameter(self, data: Any, *_: object) -> Any:
        """Stands for torch's function that makes a parameter from a tensor."""
        return data


def read_inertly(path: Path, choose: Callable[[Any], dict[str, Any]]) -> tuple[Any, dict[str, Tensor]]:
    """The content of a file, with StoredTensors for tensors, and the tensors that `choose` takes out of it, read.

    Args:
        path: a file that torch.save wrote.
        choose: content -> name -> StoredTensor; may raise.

    Raises:
        DamagedError, or what pickle and zipfile say to damage: OSError, EOFError, pickle.UnpicklingError,
        zipfile.BadZipFile, TypeError, ValueError, RuntimeError and others.
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
            # torch.save does not compress, so the entry is as long in the file: no small file asks for much memory.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != stored.storage.size:
                raise DamagedError(f"{entry.filename} has {entry.file_size} bytes, not {stored.storage.size}")
            contents[stored.storage] = archive.read(entry)
    return content, {name: stored.read(contents[stored.storage]) for name, stored in chosen.items()}


def _read_legacy(file: BinaryIO, choose: Callable[[Any], dict[str, Any]]) -> tuple[Any, dict[str, Tensor]]:
    if InertUnpickler(file).load() != LEGACY_MAGIC:
        raise DamagedError("no file of torch.save")
    for _ in ("protocol version", "system"):
        InertUnpickler(file).load()
    unpickler = InertUnpickler(file)
    content = unpickler.load()
    chosen = choose(content)
    wanted = {stored.storage.key for stored in chosen.values()}
    contents = {}
    end = os.fstat(file.fileno()).st_size
    # The storages follow one after the other, each with its count in front.
    for key in InertUnpickler(file).load():
        storage = unpickler.storages[str(key)]
        (count,) = struct.unpack("<q", _exactly(file, 8))
        if count != storage.count or file.tell() + storage.size > end:
            raise DamagedError("it ends within a tensor")
        if storage.key in wanted:
            contents[storage.key] = _exactly(file, storage.size)
        else:
            file.seek(storage.size, os.SEEK_CUR)
    return content, {name: stored.read(contents[stored.storage.key]) for name, stored in chosen.items()}


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise DamagedError("it ends early")
    return content
