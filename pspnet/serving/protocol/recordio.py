"""Encoder of class probabilities as in the built-in algorithm: a protobuf `Record` in a RecordIO frame.

The message (package aialgs.data, proto2; field numbers in brackets):

    Record         map<string, Value> features [1]
    Value          oneof: Float32Tensor float32_tensor [2], Int32Tensor int32_tensor [7]
    Float32Tensor  repeated float values [1], packed          Int32Tensor  repeated int32 values [1], packed

A frame is the magic number, the length of the message and the message, zero-padded to a multiple of four bytes.

Sources: AWS, "Common data formats for training" (the message), dmlc-core's recordio.h (the frame).
Legend: C classes, H, W image height and width.
"""

from __future__ import annotations

import struct

import numpy as np

_MAGIC = 0xCED7230A
_MAX_LENGTH = (1 << 29) - 1  # the three bits above mark a record that continues in the next frame

_FEATURES, _KEY, _VALUE, _FLOAT32_TENSOR, _INT32_TENSOR, _VALUES = 1, 1, 2, 2, 7, 1


class TooLongError(ValueError):
    """The record exceeds one RecordIO frame."""


def encode_probabilities(probabilities: np.ndarray) -> bytes:
    """Return a frame whose record has the features `target`, C * H * W float32 values, and `shape`, (1, C, H, W).

    Args:
        probabilities: (C, H, W) float32.

    Raises TooLongError above 512 MiB.
    """
    values = np.ascontiguousarray(probabilities, dtype="<f4").data.cast("B")
    shape = b"".join(_varint(size) for size in (1, *probabilities.shape))
    target_parts = _feature("target", _FLOAT32_TENSOR, values)
    parts = [*target_parts, *_feature("shape", _INT32_TENSOR, shape)]
    length = sum(len(part) for part in parts)
    if length > _MAX_LENGTH:
        raise TooLongError(f"{length:,} bytes of probabilities do not fit into one record.")
    return b"".join([struct.pack("<II", _MAGIC, length), *parts, bytes(-length % 4)])


def encoded_size(classes: int, height: int, width: int) -> int:
    """Upper bound on the bytes of encode_probabilities, tight to about 100 bytes."""
    return 4 * classes * height * width + 128


def _feature(name: str, kind: int, values: bytes | memoryview) -> list[bytes | memoryview]:
    """Return an entry of `features` as parts to join, which avoids a copy of the values."""
    inside = _field(_VALUES, len(values))
    tensor = _field(kind, len(inside) + len(values)) + inside
    key = _field(_KEY, len(name)) + name.encode("ascii")
    entry = key + _field(_VALUE, len(tensor) + len(values)) + tensor
    return [_field(_FEATURES, len(entry) + len(values)) + entry, values]


def _field(number: int, length: int) -> bytes:
    """Return the tag and length of a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    """Encode an integer in little-endian groups of seven bits; the eighth bit marks continuation."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
