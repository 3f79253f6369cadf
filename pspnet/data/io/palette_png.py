"""A faster way to read the usual palette PNG, such as VOC's annotations: its indices, as Pillow gives them.

Encoders leave the rows of palette images unfiltered, as the PNG specification advises (section 12.7), so the pixels are
the inflated data without the first byte of every row. libdeflate, by the package deflate, inflates it several times as
fast as zlib: it knows how much will come out. Every other file is Pillow's to read or to refuse.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

try:
    import deflate
except ImportError:  # optional: zlib inflates the same
    deflate = None  # type: ignore[assignment]

_START = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
# 8 bits a pixel, palette, the one compression and filter method, not interlaced.
_USUAL = (8, 3, 0, 0, 0)


def decode_indices(body: bytes) -> np.ndarray | None:
    """(H, W) uint8 indices of a whole palette PNG of 8 bits with unfiltered rows; None leaves the file to Pillow."""
    found = _header_and_data(body)
    if found is None:
        return None
    header, data = found
    width, height, *kind = _HEADER.unpack(header)
    if tuple(kind) != _USUAL or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or height * width):
        return None
    size = height * (width + 1)
    content = _inflate(data, size)
    if content is None:
        return None
    rows = np.frombuffer(content, np.uint8).reshape(height, width + 1)
    return None if rows[:, 0].any() else np.ascontiguousarray(rows[:, 1:])


def _inflate(data: bytes, size: int) -> bytes | bytearray | None:
    """The content of a zlib stream, checksum and all; None if it is damaged or has not exactly `size` bytes."""
    content: bytes | bytearray
    if deflate is not None:
        try:
            content = deflate.zlib_decompress(data, size)
        except deflate.DeflateError:  # more than `size` bytes, too
            return None
        return content if len(content) == size else None
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, size)
        content += stream.decompress(stream.unconsumed_tail, 1)  # none, but it reads the checksum
    except zlib.error:
        return None
    return content if len(content) == size and stream.eof else None


def _header_and_data(body: bytes) -> tuple[bytes, bytes] | None:
    """The content of the header and of all data chunks; None if a checksum is wrong or the end is missing."""
    header, palette = b"", False
    parts: list[bytes] = []
    place = len(_START)
    while body.startswith(_START) and place + 12 <= len(body):
        length, kind = int.from_bytes(body[place : place + 4], "big"), body[place + 4 : place + 8]
        content = body[place + 8 : place + 8 + length]
        stored = body[place + 8 + length : place + 12 + length]
        place += 12 + length
        if kind == b"acTL" or stored != zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big"):
            return None
        if kind == b"IEND":
            return (header, b"".join(parts)) if len(header) == _HEADER.size and palette and parts else None
        if kind == b"IHDR":
            if header or length != _HEADER.size or content[8:10] != bytes(_USUAL[:2]):
                return None
            header = content
        elif kind == b"PLTE":
            palette = True
        elif kind == b"IDAT":
            parts.append(content)
        elif not kind[0] & 0x20:  # another chunk that a reader must know
            return None
    return None
