"""Lossless mask codecs: run lengths and PNG. Decoders of three former forms remain, for old segments.

docs/mask_format.md specifies each form. Requires numpy and Pillow only. Decoders accept untrusted bytes: they allocate
no array larger than the given size, and raise MaskFileError.
Legend: H, W mask height and width.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from PIL import Image

from pspnet.errors import DataError
from pspnet.masks.png import SIGNATURE, png_chunk

ENCODINGS = ("runs", "png")
DEFAULT_ENCODING = "runs"
MAX_PIXELS = 100_000_000

# Window size of deflate; a longer dictionary has no effect.
_WINDOW = 32_768
_COUNT = struct.Struct("<I")


class MaskFileError(DataError):
    """A mask file or record that cannot be read."""


class Form(IntEnum):
    """Encoding of one mask. PNG and RUNS are written; the last two need the previous mask."""

    PNG = 1
    WEBP = 2
    RUNS = 3
    RUNS_FROM_PREVIOUS = 4
    CHANGES = 5


@dataclass(frozen=True)
class Encoded:
    """Encoded mask and its form."""

    form: Form
    data: bytes


def encode(mask: np.ndarray, encoding: str = DEFAULT_ENCODING) -> Encoded:
    """Encode an (H, W) uint8 mask.

    Args:
        mask: class ids, 0 to 255.
        encoding: one of ENCODINGS.

    Raises ValueError for an unknown encoding and other arrays.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
        raise ValueError(f"found an array of shape {mask.shape} and {mask.dtype}; expected (H, W) uint8.")
    if encoding == "png":
        return Encoded(Form.PNG, encode_png(mask))
    if encoding == "runs":
        return Encoded(Form.RUNS, encode_runs(mask))
    raise ValueError(f"encoding: found {encoding!r}; expected one of {', '.join(ENCODINGS)}.")


def decode(form: int, data: bytes, height: int, width: int, previous: np.ndarray | None = None) -> np.ndarray:
    """Return the (height, width) uint8 mask of one record; `previous` is the mask of the previous record.

    Raises MaskFileError for damaged data.
    """
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise MaskFileError(f"The mask has {width}x{height} pixels; expected 1 to {MAX_PIXELS:,} pixels.")
    if form in (Form.RUNS_FROM_PREVIOUS, Form.CHANGES):
        if previous is None or previous.shape != (height, width):
            raise MaskFileError("The mask depends on the previous mask, which is missing.")
        return (decode_runs if form == Form.RUNS_FROM_PREVIOUS else decode_changes)(data, height, width, previous)
    if form not in _KEY_DECODERS:
        raise MaskFileError(f"The mask has form {form}; this version reads {', '.join(str(int(x)) for x in Form)}.")
    return _KEY_DECODERS[Form(form)](data, height, width)


# --- PNG and WebP -----------------------------------------------------------------------------------------------------


NONE, SUB, UP, AVERAGE, PAETH = range(5)  # filters, as the PNG specification numbers them (W3C, third edition)


def bits_for(mask: np.ndarray) -> int:
    """Return the smallest PNG bit depth (1, 2, 4 or 8) that holds every value of the mask."""
    highest = int(mask.max())
    return next(bits for bits in (1, 2, 4, 8) if highest < 1 << bits)


def pack_bits(mask: np.ndarray, bits: int) -> np.ndarray:
    """Pack (H, W) values below 2 ** bits into (H, ceil(W * bits / 8)) bytes, the leftmost pixel in the high bits."""
    if bits == 8:
        return mask
    per_byte = 8 // bits
    height, width = mask.shape
    padded = np.zeros((height, -(-width // per_byte) * per_byte), dtype=np.uint8)
    padded[:, :width] = mask
    packed = np.zeros((height, padded.shape[1] // per_byte), dtype=np.uint8)
    for position in range(per_byte):
        packed |= padded[:, position::per_byte] << (8 - bits * (position + 1))
    return packed


def encode_png(
    mask: np.ndarray,
    palette: np.ndarray | None = None,
    *,
    bits: int | None = None,
    filter_type: int | None = None,
    strategy: int = zlib.Z_DEFAULT_STRATEGY,
    texts: dict[str, str] | None = None,
) -> bytes:
    """Return a PNG file whose pixel values are the class ids: palette indices, or 8-bit greyscale without a palette.

    Args:
        mask: (H, W) uint8.
        palette: (256, 3) uint8 colours; default: shades of grey.
        bits: 1, 2, 4 or 8; default: 8 or the smallest that holds the mask, whichever gives the smaller file, since
            deflate often compresses whole bytes better than packed ones.
        filter_type: filter of every row; default: NONE or UP, whichever gives the smaller file.
        strategy: zlib strategy.
        texts: keywords and Latin-1 texts to store (tEXt).
    """
    depths = {bits_for(mask), 8} if bits is None else {bits}
    filters = (NONE, UP) if filter_type is None else (filter_type,)
    files = (_png(mask, palette, depth, one, strategy, texts or {}) for depth in depths for one in filters)
    return min(files, key=len)


def _png(
    mask: np.ndarray, palette: np.ndarray | None, bits: int, filter_type: int, strategy: int, texts: dict[str, str]
) -> bytes:
    kind = 0 if palette is None and bits == 8 else 3
    body = _deflate(_filtered(pack_bits(mask, bits), filter_type), strategy, zlib.MAX_WBITS)
    parts = [SIGNATURE, png_chunk(b"IHDR", struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], bits, kind, 0, 0, 0))]
    if kind == 3:
        grey = np.repeat(np.linspace(0, 255, 1 << bits).astype(np.uint8)[:, None], 3, axis=1)
        colours = (grey if palette is None else palette)[: int(mask.max()) + 1]
        parts.append(png_chunk(b"PLTE", colours.astype(np.uint8).tobytes()))
    for keyword, text in texts.items():
        parts.append(png_chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1", "replace")))
    return b"".join([*parts, png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")])


def _filtered(rows: np.ndarray, filter_type: int) -> bytes:
    """Filter (H, B) uint8 rows and prefix each with the filter number. Filters work on bytes at depths up to 8."""
    left = np.pad(rows, ((0, 0), (1, 0)))[:, :-1]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    if filter_type == AVERAGE:
        predicted = ((left.astype(np.uint16) + above) // 2).astype(np.uint8)
    elif filter_type == PAETH:
        predicted = _paeth(left, above, np.pad(above, ((0, 0), (1, 0)))[:, :-1])
    else:
        predicted = {NONE: np.zeros_like(rows), SUB: left, UP: above}[filter_type]
    number = np.full((len(rows), 1), filter_type, dtype=np.uint8)
    return np.concatenate([number, rows - predicted], axis=1).tobytes()


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    a, b, c = (part.astype(np.int16) for part in (left, above, corner))
    to_left, to_above, to_corner = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    best = np.where((to_left <= to_above) & (to_left <= to_corner), a, np.where(to_above <= to_corner, b, c))
    return best.astype(np.uint8)


def _decode_picture(kind: str, data: bytes, height: int, width: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            if image.size != (width, height):
                raise MaskFileError(f"The {kind} has {image.width}x{image.height} pixels; expected {width}x{height}.")
            if kind == "PNG" and image.mode not in ("L", "P"):
                raise MaskFileError(f"The PNG has mode {image.mode}; expected one channel of up to 8 bits.")
            pixels = np.array(image.convert("RGB") if kind == "WEBP" else image, dtype=np.uint8)
    except (MaskFileError, MemoryError):
        raise
    except Exception as error:  # Pillow reports damage in many ways
        raise MaskFileError(f"The mask is not a readable {kind}; it may be damaged or truncated.") from error
    mask: np.ndarray = np.ascontiguousarray(pixels[..., 0]) if pixels.ndim == 3 else pixels
    return mask


# --- run lengths ------------------------------------------------------------------------------------------------------


def encode_runs(mask: np.ndarray) -> bytes:
    """Encode runs of equal pixels in row order: values and lengths, deflated separately."""
    values, lengths = runs_of(mask)
    packed = _deflate(values)
    return _COUNT.pack(len(packed)) + packed + _deflate(lengths)


def decode_runs(data: bytes, height: int, width: int, previous: np.ndarray | None = None) -> np.ndarray:
    """Invert encode_runs; with `previous`, its runs are the deflate dictionaries. Raises MaskFileError."""
    pixels = height * width
    old_values, old_lengths = (b"", b"") if previous is None else runs_of(previous)
    middle = _COUNT.size + (_COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else len(data))
    if middle > len(data):
        raise MaskFileError("The mask's run lengths are truncated.")
    values = np.frombuffer(_inflate(data[_COUNT.size : middle], pixels, old_values), dtype=np.uint8)
    lengths = _read_varints(_inflate(data[middle:], pixels, old_lengths))
    if len(values) != len(lengths) or int(lengths.sum()) != pixels:
        raise MaskFileError(f"The mask's run lengths don't fill {width}x{height} pixels.")
    return np.repeat(values, lengths).reshape(height, width)


def runs_of(mask: np.ndarray) -> tuple[bytes, bytes]:
    """Return the values of the runs, and their lengths as variable-length integers."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return flat[starts].tobytes(), _write_varints(np.diff(np.append(starts, flat.size)))


def _write_varints(numbers: np.ndarray) -> bytes:
    """Encode positive integers in LEB128: seven bits per byte, lowest first; the high bit marks a following byte."""
    positions = np.arange(4)  # enough for MAX_PIXELS, which is below 2 ** 28
    digits = numbers[:, None] >> (7 * positions)  # (N, 4)
    used = (digits > 0) | (positions == 0)
    follows = np.concatenate([used[:, 1:], np.zeros((len(numbers), 1), dtype=bool)], axis=1)
    written: bytes = ((digits & 127) | (follows * 128)).astype(np.uint8)[used].tobytes()
    return written


def _read_varints(data: bytes) -> np.ndarray:
    """Invert _write_varints; all integers are at least 1."""
    parts = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
    ends = np.flatnonzero(parts < 128)
    if not len(ends) or ends[-1] != len(parts) - 1:
        raise MaskFileError("The mask's run lengths are truncated.")
    starts = np.concatenate([[0], ends[:-1] + 1])
    counts = ends - starts + 1
    if counts.max() > 4:
        raise MaskFileError("The mask has a run length above the maximum size of a mask.")
    positions = np.arange(len(parts)) - np.repeat(starts, counts)
    numbers: np.ndarray = np.add.reduceat((parts & 127) << (7 * positions), starts)
    if numbers.min() < 1:
        raise MaskFileError("The mask has an empty run.")
    return numbers


def decode_changes(data: bytes, height: int, width: int, previous: np.ndarray) -> np.ndarray:
    """Decode the changed pixels of an old segment: runs in which the first byte's value marks unchanged pixels."""
    if not data:
        raise MaskFileError("The mask's data is empty.")
    changed = decode_runs(data[1:], height, width)
    return np.where(changed == data[0], previous, changed)


def _deflate(data: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY, bits: int = -zlib.MAX_WBITS) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, bits, 9, strategy)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, limit: int, dictionary: bytes) -> bytes:
    """Inflate a raw deflate stream to at most `limit` bytes. Raises MaskFileError."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS, dictionary[-_WINDOW:])
    try:
        content = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise MaskFileError(f"The mask's deflated bytes are damaged ({error}).") from error
    if len(content) > limit or not unpacker.eof or unpacker.unused_data:
        raise MaskFileError("The mask's deflated bytes are truncated, too long, or followed by other bytes.")
    return content


_KEY_DECODERS: dict[Form, Callable[[bytes, int, int], np.ndarray]] = {
    Form.PNG: lambda data, height, width: _decode_picture("PNG", data, height, width),
    Form.WEBP: lambda data, height, width: _decode_picture("WEBP", data, height, width),
    Form.RUNS: decode_runs,
}
