"""Fast reader of common palette PNG files, such as VOC's annotations, with Pillow's indices.

Encoders leave the rows of palette images unfiltered, as the PNG specification recommends (section 12.7), so the pixels
are the inflated data without the first byte of every row. libdeflate (package deflate) inflates several times faster
than zlib, because the output size is known. Pillow handles all other files.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

try:
    import deflate
except ImportError:  # optional: zlib gives the same result
    deflate = None  # type: ignore[assignment]

_START = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
# 8 bits per pixel, palette, compression and filter method 0, not interlaced.
_SUPPORTED = (8, 3, 0, 0, 0)


def decode_indices(body: bytes) -> np.ndarray | None:
    """(H, W) uint8 indices of a valid 8-bit palette PNG with unfiltered rows; None if Pillow must decode it."""
    found = _header_and_data(body)
    if found is None:
        return None
    header, data = found
    width, height, *kind = _HEADER.unpack(header)
    if tuple(kind) != _SUPPORTED or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or height * width):
        return None
    size = height * (width + 1)
    content = _inflate(data, size)
    if content is None:
        return None
    rows = np.frombuffer(content, np.uint8).reshape(height, width + 1)
    return None if rows[:, 0].any() else np.ascontiguousarray(rows[:, 1:])


def _inflate(data: bytes, size: int) -> bytes | bytearray | None:
    """The content of a zlib stream with a valid checksum; None if it is damaged or not exactly `size` bytes."""
    content: bytes | bytearray
    if deflate is not None:
        try:
            content = deflate.zlib_decompress(data, size)
        except deflate.DeflateError:  # also for more than `size` bytes
            return None
        return content if len(content) == size else None
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, size)
        content += stream.decompress(stream.unconsumed_tail, 1)  # returns nothing, but reads the checksum
    except zlib.error:
        return None
    return content if len(content) == size and stream.eof else None


def _header_and_data(body: bytes) -> tuple[bytes, bytes] | None:
    """Contents of the header and of all data chunks; None if a checksum is wrong or the end is missing."""
    header, palette = b"", False
    parts: list[bytes] = []
    position = len(_START)
    while body.startswith(_START) and position + 12 <= len(body):
        length, kind = int.from_bytes(body[position : position + 4], "big"), body[position + 4 : position + 8]
        content = body[position + 8 : position + 8 + length]
        stored = body[position + 8 + length : position + 12 + length]
        position += 12 + length
        if kind == b"acTL" or stored != zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big"):
            return None
        if kind == b"IEND":
            return (header, b"".join(parts)) if len(header) == _HEADER.size and palette and parts else None
        if kind == b"IHDR":
            if header or length != _HEADER.size or content[8:10] != bytes(_SUPPORTED[:2]):
                return None
            header = content
        elif kind == b"PLTE":
            palette = True
        elif kind == b"IDAT":
            parts.append(content)
        elif not kind[0] & 0x20:  # an unknown critical chunk
            return None
    return None
