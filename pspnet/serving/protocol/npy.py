"""NPY codec without pickle.

Format: NEP 1 (numpy.lib.format). Legend: H, W image height and width.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

MAGIC = npy_format.MAGIC_PREFIX
# NumPy writes 128 bytes for an image. Longer headers are slow to parse, and deeply nested ones can exhaust the stack.
_LONGEST_HEADER = 256
# Version 3 differs from 2 only in the encoding of field names, which an image does not have.
_READERS = {
    1: npy_format.read_array_header_1_0, 2: npy_format.read_array_header_2_0, 3: npy_format.read_array_header_2_0
}  # fmt: skip


class NpyError(ValueError):
    """Invalid NPY body; the message continues a sentence that starts with "The NPY body "."""


def read_shape(body: bytes) -> tuple[tuple[int, ...], bool, int]:
    """Return (shape, Fortran order, offset of the data) of an NPY body that holds an image.

    Allocates no pixels. Raises NpyError unless the body is a complete (H, W, 3) or (H, W) uint8 array.
    """
    reader = _READERS.get(body[6]) if body.startswith(MAGIC) and len(body) > 6 else None
    if reader is None:
        raise NpyError("is not an NPY file: it does not start with NumPy's magic bytes; write it with numpy.save.")
    file = io.BytesIO(body[: _LONGEST_HEADER + 12])
    file.seek(8)
    try:
        shape, fortran, dtype = reader(file, max_header_size=_LONGEST_HEADER)
    except Exception:  # the parser raises ValueError, SyntaxError, TokenError, RecursionError, MemoryError ...
        raise NpyError("has a header that cannot be read; write it with numpy.save.") from None
    if dtype != np.uint8:
        raise NpyError(f"is of type {dtype.str[:40]!r}; expected uint8 ('|u1').")
    if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or not 0 < min(shape) <= max(shape) < 1 << 31:
        raise NpyError(f"is of shape {_shown(shape)}; expected (H, W, 3) RGB or (H, W) grey.")
    expected, rest = shape[0] * shape[1] * (3 if shape[2:] else 1), len(body) - file.tell()
    if rest != expected:
        raise NpyError(f"of shape {_shown(shape)} has {rest:,} bytes of data; expected {expected:,}.")
    return shape, fortran, file.tell()


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
