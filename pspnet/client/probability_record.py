"""Decoder of the built-in algorithm's probabilities: a RecordIO-wrapped protobuf Record with `target` and `shape`.

Written from Amazon's published description of the format (recordio-protobuf, aialgs.data.Record). Unknown fields are
skipped.
Legend: C classes, H, W height and width.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from pspnet.errors import DataError

_MAGIC = 0xCED7230A
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of Record, of a map's entry, and of Value.
_FEATURES, _LABEL = 1, 2
_KEY, _VALUE = 1, 2
_FLOAT32_TENSOR, _FLOAT64_TENSOR, _INT32_TENSOR = 2, 3, 7
_VALUES = 1


def decode_probabilities(content: bytes) -> np.ndarray:
    """Return the (C, H, W) float32 class probabilities of an answer, with or without its RecordIO frame.

    Raises DataError for any other content.
    """
    try:
        tensors = _tensors(_unframed(content))
        shape = [int(size) for size in tensors["shape"]]
        values = tensors["target"].astype(np.float32)
        if len(shape) == 4 and shape[0] == 1:
            return values.reshape(shape[1:])
        found = f"the shape {shape}"
    except (KeyError, IndexError, ValueError, struct.error) as error:
        found = f"no target and shape ({error})"
    raise DataError(f"the endpoint's answer holds {found}; expected probabilities of the shape (1, C, H, W).")


def _unframed(content: bytes) -> bytes:
    if len(content) < 8 or struct.unpack_from("<I", content)[0] != _MAGIC:
        return content
    (length,) = struct.unpack_from("<I", content, 4)
    length &= (1 << 29) - 1  # the upper bits number the parts of a split record
    if len(content) < 8 + length:
        raise ValueError(f"the record has {len(content) - 8} of {length} bytes")
    return content[8 : 8 + length]


def _tensors(record: bytes) -> dict[str, np.ndarray]:
    """Return the entries of the Record's maps, name -> flat values; the built-in algorithm's are features."""
    entries = {}
    for number, _, entry in _fields(record):
        if number in (_FEATURES, _LABEL):
            parts = {field: value for field, _, value in _fields(entry)}
            entries[bytes(parts[_KEY]).decode()] = _tensor(parts[_VALUE])
    return entries


def _tensor(value: bytes) -> np.ndarray:
    for number, _, tensor in _fields(value):
        chunks = [content for field, _, content in _fields(tensor) if field == _VALUES]
        if number == _FLOAT32_TENSOR:
            return np.frombuffer(b"".join(chunks), dtype="<f4")
        if number == _FLOAT64_TENSOR:
            return np.frombuffer(b"".join(chunks), dtype="<f8")
        if number == _INT32_TENSOR:
            return np.array([number for chunk in chunks for number in _varints(chunk)], dtype=np.int64)
    raise ValueError("a value without a tensor")


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, wire type and bytes of every field; a varint as its encoded bytes."""
    view, position = memoryview(message), 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            start = position
            _, position = _varint(view, position)
            yield number, kind, bytes(view[start:position])
            continue
        if kind == _BYTES:
            length, position = _varint(view, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(view):
            raise ValueError("a truncated field")
        yield number, kind, bytes(view[position : position + length])
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Return an unsigned base-128 number (7 bits per byte) and the position after it."""
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("an unterminated number")


def _varints(chunk: bytes) -> Iterator[int]:
    view, position = memoryview(chunk), 0
    while position < len(view):
        value, position = _varint(view, position)
        yield value
