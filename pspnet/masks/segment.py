"""Binary format of mask segments: header, records, index and file names; see docs/mask_format.md.

All numbers are little-endian.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

from pspnet.masks.codec import DEFAULT_ENCODING, MAX_PIXELS, MaskFileError

MAGIC = b"\x89PSPM\r\n\x1a"
VERSION = 1
SUFFIX = ".pspm"
PNG_SUFFIX = ".png"
OPEN_SUFFIX = ".pspm.open"  # segment that is being written, or whose writer was killed

HEADER = struct.Struct("<8sHHIIII")  # magic, version, classes, width, height, bytes of metadata, CRC
RECORD = struct.Struct("<4sBBHIQddfI")  # marker, form, flags, label bytes, payload bytes, frame, times, latency, CRC
INDEX = struct.Struct("<4sIII")  # marker, entries, bytes of the body, CRC
TRAILER = struct.Struct("<QI8s")  # offset of the index, its bytes, magic
RECORD_MARKER, INDEX_MARKER, END_MAGIC = b"MASK", b"INDX", b"PSPMEND\n"
KEY, SAME_LABELS = 1, 2

MAX_METADATA = 1_048_576
MAX_RECORDS = 10_000_000
INDEX_ENTRY = np.dtype(
    [("frame", "<u8"), ("captured", "<f8"), ("timestamp", "<f8"), ("offset", "<u8"), ("length", "<u4"), ("key", "<u4")]
)
"""Index entry of a record; `offset` and `length` in bytes, `key`: number of the key record that decoding starts at."""

_TIME = r"(\d{8}T\d{12}Z)"
_NAME = re.compile(rf"{_TIME}(?:-{_TIME})?-(\d{{9,20}})(?:-(\d{{9,20}}))?(?:\.\d+)?(\.pspm\.open|\.pspm|\.png)")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class SegmentHeader:
    """Metadata shared by all masks of a segment.

    height, width: of every mask. class_names: in the order of the ids. palette: (256, 3) uint8, or None.
    encoding: setting of the writer; each record has its own form. source: source of the frames.
    """

    height: int
    width: int
    class_names: tuple[str, ...] = ()
    palette: np.ndarray | None = None
    encoding: str = DEFAULT_ENCODING
    source: str = ""

    def pack(self) -> bytes:
        """Return the bytes of the header."""
        about: dict[str, Any] = {"classes": list(self.class_names), "encoding": self.encoding, "source": self.source}
        if self.palette is not None:
            count = len(self.class_names) or 256
            about["palette"] = self.palette[:count].astype(np.uint8).tobytes().hex()
        text = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
        start = HEADER.pack(MAGIC, VERSION, len(self.class_names), self.width, self.height, len(text), 0)[:-4]
        return start + struct.pack("<I", zlib.crc32(text, zlib.crc32(start))) + text


def header_size(start: bytes, name: str) -> int:
    """Return the header's size in bytes, from its first HEADER.size bytes. Raises MaskFileError for other files."""
    if not start.startswith(MAGIC):
        raise MaskFileError(f"{name}: not a mask segment; it begins with {start[:8]!r}, expected {MAGIC!r}.")
    if len(start) < HEADER.size:
        raise MaskFileError(f"{name}: ends within its header.")
    _, version, _, width, height, length, _ = HEADER.unpack_from(start)
    if version != VERSION:
        raise MaskFileError(
            f"{name}: has format version {version}; this reader supports version {VERSION}; upgrade pspnet."
        )
    if min(height, width) < 1 or width * height > MAX_PIXELS or length > MAX_METADATA:
        raise MaskFileError(
            f"{name}: the header declares {width}x{height} pixels and {length:,} bytes of metadata; expected 1 to "
            f"{MAX_PIXELS:,} pixels and at most {MAX_METADATA:,} bytes."
        )
    return HEADER.size + int(length)


def unpack_header(data: bytes, name: str) -> SegmentHeader:
    """Return the header at the beginning of `data`. Raises MaskFileError."""
    end = header_size(data, name)
    _, _, classes, width, height, _, crc = HEADER.unpack_from(data)
    text = data[HEADER.size : end]
    if len(data) < end or zlib.crc32(text, zlib.crc32(data[: HEADER.size - 4])) != crc:
        raise MaskFileError(f"{name}: the header is damaged or truncated.")
    try:
        about = json.loads(text)
        names = tuple(str(one) for one in about["classes"])
        palette = _read_palette(about.get("palette"))
        encoding, source = str(about["encoding"]), str(about["source"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MaskFileError(f"{name}: the header's metadata cannot be read ({error!r}).") from error
    if len(names) != classes:
        raise MaskFileError(f"{name}: the header lists {len(names)} classes; expected {classes}.")
    return SegmentHeader(height, width, names, palette, encoding, source)


def _read_palette(text: str | None) -> np.ndarray | None:
    if text is None:
        return None
    palette = np.zeros((256, 3), dtype=np.uint8)
    colours = np.frombuffer(bytes.fromhex(text), dtype=np.uint8).reshape(-1, 3)[:256]
    palette[: len(colours)] = colours
    return palette


@dataclass(frozen=True)
class RecordHead:
    """A record without its mask.

    frame: number of the frame in its source. captured: seconds since the epoch. timestamp: seconds since the stream
    began. latency: seconds from the frame's arrival to its mask, NaN if unknown. labels: metadata from the source; None
    if they equal those of the previous record.
    """

    frame: int
    captured: float
    timestamp: float
    latency: float = math.nan
    labels: Mapping[str, str] | None = field(default_factory=dict)
    form: int = 0
    key: bool = True

    def pack(self, payload: bytes) -> bytes:
        """Return the bytes of the record. Raises ValueError for labels of more than 65,535 bytes."""
        text = b"" if not self.labels else json.dumps(dict(self.labels), ensure_ascii=False).encode()
        if len(text) > 65_535:
            raise ValueError(f"the frame's labels have {len(text):,} bytes; a record holds at most 65,535.")
        flags = KEY * self.key | SAME_LABELS * (self.labels is None)  # both vary in segments of old writers only
        start = RECORD.pack(
            RECORD_MARKER, self.form, flags, len(text), len(payload), self.frame, self.captured, self.timestamp,
            self.latency, 0,
        )[:-4]  # fmt: skip
        crc = zlib.crc32(payload, zlib.crc32(text, zlib.crc32(start)))
        return start + struct.pack("<I", crc) + text + payload


def unpack_record(data: bytes, offset: int = 0) -> tuple[RecordHead, bytes, int] | None:
    """Return the record at `offset`, its payload and its end; None if it is incomplete or damaged."""
    if len(data) - offset < RECORD.size or data[offset : offset + 4] != RECORD_MARKER:
        return None
    _, form, flags, text_length, length, frame, captured, timestamp, latency, crc = RECORD.unpack_from(data, offset)
    middle = offset + RECORD.size + text_length
    end = middle + length
    if end > len(data):
        return None
    start, text, payload = (
        data[offset : offset + RECORD.size - 4],
        data[offset + RECORD.size : middle],
        data[middle:end],
    )
    if zlib.crc32(payload, zlib.crc32(text, zlib.crc32(start))) != crc:
        return None
    labels = None if flags & SAME_LABELS else _read_labels(text)
    return RecordHead(frame, captured, timestamp, latency, labels, form, bool(flags & KEY)), payload, end


def _read_labels(text: bytes) -> dict[str, str]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def pack_index(entries: np.ndarray, offset: int) -> bytes:
    """Return the bytes of the index and the trailer, for INDEX_ENTRY values and an index that begins at `offset`."""
    columns = b"".join(np.ascontiguousarray(entries[name]).tobytes() for name in INDEX_ENTRY.names or ())
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(columns) + packer.flush()
    start = INDEX.pack(INDEX_MARKER, len(entries), len(body), 0)[:-4]
    index = start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body
    return index + TRAILER.pack(offset, len(index), END_MAGIC)


def unpack_index(data: bytes) -> np.ndarray | None:
    """Return INDEX_ENTRY values from the bytes of an index (without the trailer); None if they are damaged."""
    if len(data) < INDEX.size:
        return None
    marker, count, length, crc = INDEX.unpack_from(data)
    body = data[INDEX.size :]
    intact = marker == INDEX_MARKER and length == len(body) and count <= MAX_RECORDS
    if not intact or zlib.crc32(body, zlib.crc32(data[: INDEX.size - 4])) != crc:
        return None
    try:
        columns = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, count * INDEX_ENTRY.itemsize + 1)
    except zlib.error:
        return None
    if len(columns) != count * INDEX_ENTRY.itemsize:
        return None
    entries = np.zeros(count, dtype=INDEX_ENTRY)
    start = 0
    for name in INDEX_ENTRY.names or ():
        kind = INDEX_ENTRY[name]
        entries[name] = np.frombuffer(columns, kind, count, start)
        start += count * kind.itemsize
    return entries


# --- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskName:
    """Fields of a file name: capture time and number of the first and the last frame; None if the name lacks them."""

    captured: float
    frame: int
    last_captured: float | None
    last_frame: int | None
    suffix: str


def mask_name(first: RecordHead, last: RecordHead | None, suffix: str, again: int = 0) -> str:
    """Return a file name; names sort by capture time. `again` distinguishes files that would share a name.

    Raises ValueError for a time outside the calendar.
    """
    times, frames = [_time_text(first.captured)], [f"{first.frame:09d}"]
    if last is not None:
        times.append(_time_text(last.captured))
        frames.append(f"{last.frame:09d}")
    return "-".join(times + frames) + (f".{again}" if again else "") + suffix


def read_name(name: str) -> MaskName | None:
    """Parse a name of mask_name; None for other names."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    try:
        last = _read_time(found[2]) if found[2] else None
        return MaskName(_read_time(found[1]), int(found[3]), last, int(found[4]) if found[4] else None, found[5])
    except ValueError:
        return None


def _time_text(seconds: float) -> str:
    """Format as UTC in microseconds, rounded down."""
    try:
        return (_EPOCH + timedelta(microseconds=math.floor(seconds * 1e6))).strftime("%Y%m%dT%H%M%S%fZ")
    except OverflowError as error:
        raise ValueError(f"found the time {seconds!r}; expected seconds since the epoch.") from error


def _read_time(text: str) -> float:
    return datetime.strptime(text, "%Y%m%dT%H%M%S%fZ").replace(tzinfo=timezone.utc).timestamp()
