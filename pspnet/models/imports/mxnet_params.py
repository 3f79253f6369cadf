"""Reader of MXNet's parameter files without MXNet: named arrays written by `save_parameters` and `mx.nd.save`.

The format is that of NDArray::Save and NDArray::Load in MXNet 0.9 to 1.9, little-endian throughout:

    uint64 0x112, uint64 0, uint64 number of arrays, the arrays, uint64 number of names, the names (uint64 length, text)
    array, version 2 and 3:  uint32 magic, int32 storage type (0: dense), shape, context, type, data
    array, version 1:        uint32 magic, shape, context, type, data
    array, before that:      uint32 dimensions, uint32 per dimension, context, type, data
    shape: int32 dimensions, int64 per dimension    context: int32 device type, int32 device number    type: int32
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from pspnet.errors import WeightsError

FILE_MAGIC = 0x112
_VERSION_1, _VERSION_2, _VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    5: torch.int8,
    6: torch.int64,
    7: torch.bool,
    12: torch.bfloat16,
}
# Upper bound for arrays of a network; more dimensions mean a damaged file.
_MAX_DIMENSIONS = 32


class _Reader:
    """Bounds-checked reader of the file's bytes."""

    def __init__(self, content: bytes, source: str) -> None:
        self.content = content
        self.source = source
        self.position = 0

    def numbers(self, form: str, count: int = 1) -> tuple[int, ...]:
        """Read `count` numbers of the struct format character `form`."""
        size = struct.calcsize(f"<{form}") * count
        start = self.skip(size)
        return struct.unpack_from(f"<{count}{form}", self.content, start)

    def number(self, form: str) -> int:
        return self.numbers(form)[0]

    def skip(self, size: int) -> int:
        """Advance by `size` bytes and return their start."""
        start = self.position
        if size < 0 or start + size > len(self.content):
            raise WeightsError(
                f"{self.source}: truncated, it ends at byte {len(self.content):,} within an array or name. "
                "Copy or download it again."
            )
        self.position += size
        return start

    def damaged(self, what: str) -> WeightsError:
        return WeightsError(f"{self.source}: damaged: {what} at byte {self.position:,}. Copy or download it again.")


def read_mxnet_params(content: bytes, source: str) -> Mapping[str, Tensor]:
    """Read the names and arrays of a parameter file, without the prefixes `arg:` and `aux:` of exported models.

    Args:
        content: the file's bytes.
        source: origin of the bytes, for messages.

    Raises:
        WeightsError: another format, truncated, damaged, sparse or unnamed arrays.
    """
    reader = _Reader(content, source)
    if len(content) < 24 or reader.number("Q") != FILE_MAGIC:
        raise WeightsError(
            f"{source}: not an MXNet parameter file (it does not begin with {FILE_MAGIC:#x}). Expected a file of "
            "GluonCV's save_parameters, such as model_algo-1 of the built-in algorithm's model.tar.gz."
        )
    reader.skip(8)  # reserved
    count = reader.number("Q")
    if count > len(content):
        raise reader.damaged(f"a count of {count:,} arrays")
    arrays = [_read_array(reader) for _ in range(count)]
    names = [_read_name(reader) for _ in range(reader.number("Q"))]
    if len(names) != len(arrays):
        raise WeightsError(f"{source}: {len(arrays)} arrays, but {len(names)} names. Expected equal counts.")
    return {name.split(":", 1)[1] if name[:4] in ("arg:", "aux:") else name: a for name, a in zip(names, arrays)}


def _read_array(reader: _Reader) -> Tensor:
    magic = reader.number("I")
    if magic in (_VERSION_2, _VERSION_3) and reader.number("i") != 0:
        raise WeightsError(f"{reader.source}: has a sparse array, which no GluonCV network uses.")
    shape = _read_shape(reader, magic)
    if shape is None:
        return torch.empty(0)
    reader.skip(8)  # context: the device of the array
    flag = reader.number("i")
    if flag not in _TYPES:
        raise reader.damaged(f"an array of the unknown type {flag}")
    dtype = _TYPES[flag]
    count = math.prod(shape)
    size = count * torch.empty(0, dtype=dtype).element_size()
    start = reader.skip(size)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    # Copied, because arrays are not aligned in the file.
    return torch.frombuffer(bytearray(reader.content[start : start + size]), dtype=dtype).view(shape)


def _read_shape(reader: _Reader, magic: int) -> tuple[int, ...] | None:
    """Read the shape; None for an array without one, which has no data."""
    versioned = magic in (_VERSION_1, _VERSION_2, _VERSION_3)
    dimensions = reader.number("i") if versioned else magic
    if dimensions == (-1 if magic == _VERSION_3 else 0):
        return None
    if not 0 <= dimensions <= _MAX_DIMENSIONS:
        raise reader.damaged(f"an array of {dimensions} dimensions")
    shape = reader.numbers("q" if versioned else "I", dimensions)
    if min(shape, default=0) < 0:
        raise reader.damaged(f"an array of the shape {shape}")
    return shape


def _read_name(reader: _Reader) -> str:
    size = reader.number("Q")
    start = reader.skip(size)
    return reader.content[start : start + size].decode("utf-8", "replace")
