"""NPY codec without pickle and without evaluating the header as Python.

Format: NEP 1 (numpy.lib.format). Legend: H, W image height and width.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np

MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1_000  # NumPy writes 128 bytes for an image
_FIELDS = re.compile(
    rb"\s*\{\s*'descr'\s*:\s*(?P<descr>'[^']*'|\[.*\])\s*,\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    rb"\s*'shape'\s*:\s*\((?P<shape>[\d\s,]*)\)\s*,?\s*\}\s*",
    re.DOTALL,
)
_UINT8 = ("|u1", "<u1", ">u1", "=u1", "u1")


class NpyError(ValueError):
    """Invalid NPY body; the message continues a sentence that starts with "The NPY body "."""


def read_shape(body: bytes) -> tuple[tuple[int, ...], bool, int]:
    """Return (shape, Fortran order, offset of the data) of an NPY body that holds an image.

    Allocates nothing. Raises NpyError unless the body is a complete (H, W, 3) or (H, W) uint8 array.
    """
    if body[:6] != MAGIC or len(body) < 12 or body[6] not in (1, 2, 3):
        raise NpyError("is not an NPY file: it does not start with NumPy's magic bytes; write it with numpy.save.")
    width, start = ("<H", 10) if body[6] == 1 else ("<I", 12)
    (length,) = struct.unpack(width, body[8:start])
    header = body[start : start + length] if length <= _LONGEST_HEADER else b""
    found = _FIELDS.fullmatch(header)
    if found is None:
        raise NpyError("has a header that cannot be read; write it with numpy.save.")
    descr = found["descr"].decode("latin-1").strip("'")
    if descr not in _UINT8:
        raise NpyError(f"is of type {descr[:40]!r}; expected uint8 ('|u1').")
    shape = tuple(int(size) for size in found["shape"].replace(b",", b" ").split())
    if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or not 0 < min(shape) <= max(shape) < 1 << 31:
        raise NpyError(f"is of shape {_shown(shape)}; expected (H, W, 3) RGB or (H, W) grey.")
    expected, rest = shape[0] * shape[1] * (3 if shape[2:] else 1), len(body) - start - length
    if rest != expected:
        raise NpyError(f"of shape {_shown(shape)} has {rest:,} bytes of data; expected {expected:,}.")
    return shape, found["fortran"] == b"True", start + length


def read_pixels(body: bytes, shape: tuple[int, ...], fortran: bool, offset: int) -> np.ndarray:
    """Return the (H, W, 3) uint8 pixels of a body that read_shape accepted; grey is repeated."""
    values = np.frombuffer(body, dtype=np.uint8, offset=offset)
    pixels = values.reshape(shape[::-1]).T if fortran else values.reshape(shape)  # (H, W, 3) or (H, W)
    if pixels.ndim == 2:
        pixels = np.broadcast_to(pixels[..., None], (*shape, 3))
    return np.ascontiguousarray(pixels)


def write(values: np.ndarray) -> bytes:
    """Encode an array as numpy.save does."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def write_compressed(name: str, values: np.ndarray) -> bytes:
    """Encode a named array as numpy.savez_compressed does."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: values}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _shown(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) < 60 else f"{text[:60]}..."
