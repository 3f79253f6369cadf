"""Incremental Matroska parser for the body of GetMedia of Kinesis Video Streams.

The body is a sequence of small Matroska files, one per fragment: EBML header, segment of unknown size, tracks, tags,
one cluster, tags. Demuxers for files read ahead, and return neither the tags after a cluster nor those of the second
file. This parser returns every block and tag after its last byte, buffers one element at a time, and resynchronises at
the next fragment after damaged bytes. Source: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_ELEMENT = 32 * 1024 * 1024
"""Maximum size of an element in bytes, ten times a 4K key frame; larger sizes come from damaged bytes."""

_EBML, _SEGMENT, _CLUSTER, _BLOCK_GROUP = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xA0
_INFO, _TRACKS, _TAGS, _TIMESTAMP, _SIMPLE_BLOCK, _BLOCK = 0x1549A966, 0x1654AE6B, 0x1254C367, 0xE7, 0xA3, 0xA1
_TIMESTAMP_SCALE = 0x2AD7B1
_TRACK_ENTRY, _TRACK_NUMBER, _TRACK_TYPE, _CODEC_ID, _CODEC_PRIVATE, _ENCODINGS = 0xAE, 0xD7, 0x83, 0x86, 0x63A2, 0x6D80
_TAG, _SIMPLE_TAG, _TAG_NAME, _TAG_STRING = 0x7373, 0x67C8, 0x45A3, 0x4487

# The children of these are parsed one level higher, so that unknown and wrong sizes do not matter.
_OPENED = {_SEGMENT, _CLUSTER, _BLOCK_GROUP}
_READ = {_INFO, _TRACKS, _TAGS, _TIMESTAMP, _SIMPLE_BLOCK, _BLOCK}
# Ignored: seek head, cues, chapters, attachments, void, checksum; and other children of clusters and block groups.
_IGNORED = {
    _EBML, 0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1941A469, 0xEC, 0xBF, 0x5854, 0xA7, 0xAB, 0xAF,
    0x9B, 0xFB, 0xFA, 0xFD, 0x75A1, 0x75A2, 0xA4, 0xA2, 0x8E,
}  # fmt: skip
_MAGIC = b"\x1a\x45\xdf\xa3"
_HEADER_LOOK = 64
"""Bytes from the start of an EBML header within which its document type is searched."""
_VIDEO = 1


@dataclass(frozen=True)
class Begin:
    """EBML header: start of a fragment, which resets the state."""


@dataclass(frozen=True)
class Track:
    """Video track. `private` is the codec's header (for H.264 the avcC record)."""

    number: int
    codec: str
    private: bytes
    encoded: bool
    """Whether blocks are additionally compressed or encrypted, which is unsupported."""


@dataclass(frozen=True)
class Tags:
    """Names and strings of a Tags element."""

    values: dict[str, str]


@dataclass(frozen=True)
class Block:
    """Bytes of one frame. `time` and `base`: time of the frame and its cluster in seconds, on the fragment's clock."""

    track: int
    time: float
    base: float
    data: bytes


@dataclass(frozen=True)
class Damage:
    """Damaged bytes; everything up to the next EBML header is skipped."""

    reason: str


Event = Begin | Track | Tags | Block | Damage


class DamagedError(ValueError):
    """The bytes are not valid Matroska."""


class MatroskaReader:
    """Parser of bytes in pieces of any size into events. Never raises."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer without a next header
        self._lost = False  # skipping damaged bytes
        self._begun = False
        self._scale, self._base = 1_000_000, 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete, in order."""
        self._buffer += data
        while True:
            if self._lost and not self._find_header():
                return
            try:
                more, event = self._next()
            except DamagedError as error:
                # Drop its first byte, so that a damaged header is not found again.
                self._drop(1)
                self._lost = True
                yield Damage(str(error))
                continue
            if event is not None:
                yield event
            if not more:
                return

    def _find_header(self) -> bool:
        """Discard the buffer up to the next EBML header; return False if none was found yet."""
        at = self._header_at(self._searched)
        if at is None:
            del self._buffer[: max(0, len(self._buffer) - _HEADER_LOOK)]
            self._searched = 0
            return False
        del self._buffer[:at]
        self._searched, self._lost = 0, False
        return True

    def _header_at(self, start: int, end: int | None = None) -> int | None:
        """Return the offset of an EBML header in a range; None if there is none, or not enough of it."""
        at = self._buffer.find(_MAGIC, start, end)
        while at >= 0:
            # The four magic bytes occur by chance in any long video; followed by the document type they do not.
            near = self._buffer[at : at + _HEADER_LOOK]
            if b"matroska" in near or b"webm" in near:
                return at
            at = self._buffer.find(_MAGIC, at + 1, end)
        return None

    def _next(self) -> tuple[bool, Event | None]:
        """Parse one element; return whether to continue, and its event. Raises DamagedError."""
        head = element_head(self._buffer)
        if head is None:
            return False, None
        kind, size, start = head
        if not self._begun and kind != _EBML:
            raise DamagedError("the stream does not begin with an EBML header")
        if kind in _OPENED:
            self._drop(start)
            return True, None
        if kind not in _READ and kind not in _IGNORED:
            raise DamagedError(f"found {kind:#x}, which is not a Matroska element")
        if size is None or size > LONGEST_ELEMENT:
            raise DamagedError(f"element {kind:#x} has {'an unknown size' if size is None else f'{size} bytes'}")
        # An element never contains an EBML header: then its size is wrong, and the next fragment must not be lost.
        if self._header_at(max(start, self._searched - _HEADER_LOOK), start + size) is not None:
            raise DamagedError(f"element {kind:#x} runs into the next fragment")
        if len(self._buffer) < start + size:
            self._searched = len(self._buffer)
            return False, None
        event = self._event(kind, bytes(self._buffer[start : start + size]))
        self._drop(start + size)
        return True, event

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0

    def _event(self, kind: int, content: bytes) -> Event | None:
        if kind == _EBML:
            self._begun, self._scale, self._base = True, 1_000_000, 0
            return Begin()
        if kind == _INFO:
            self._scale = next((number(part) for name, part in children(content) if name == _TIMESTAMP_SCALE), 0)
            self._scale = self._scale or 1_000_000
        elif kind == _TIMESTAMP:
            self._base = number(content)
        elif kind == _TRACKS:
            return video_track(content)
        elif kind == _TAGS:
            return Tags(read_tags(content))
        elif kind in (_SIMPLE_BLOCK, _BLOCK):
            return self._block(content)
        return None

    def _block(self, content: bytes) -> Block:
        track, start = variable_number(content, 0)
        if track is None or start is None or len(content) < start + 3:
            raise DamagedError("a block ends within its header")
        if content[start + 2] & 0x06:
            raise DamagedError("a block holds several frames, which video tracks do not use")
        relative = int.from_bytes(content[start : start + 2], "big", signed=True)
        unit = self._scale / 1e9
        return Block(track, (self._base + relative) * unit, self._base * unit, content[start + 3 :])


def element_head(data: bytes | bytearray, at: int = 0) -> tuple[int, int | None, int] | None:
    """Return (ID, size or None if unknown, offset of the content); None if it is incomplete. Raises DamagedError."""
    if at >= len(data):
        return None
    length = 9 - data[at].bit_length()
    if length > 4:
        raise DamagedError(f"found the byte {data[at]:#04x} at the start of an element")
    if at + length >= len(data):
        return None
    size_length = 9 - data[at + length].bit_length()
    if size_length > 8:
        raise DamagedError("found a size of more than 8 bytes")
    size, start = variable_number(data, at + length)
    if start is None:
        return None
    return int.from_bytes(data[at : at + length], "big"), size, start


def variable_number(data: bytes | bytearray, at: int) -> tuple[int | None, int | None]:
    """Return an EBML variable-size integer (RFC 8794, section 4) and its end; (None, end) for the reserved "unknown".

    (None, None) if the data ends within it, or its first byte is zero.
    """
    if at >= len(data) or data[at] == 0:
        return None, None
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return None, None
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def number(content: bytes) -> int:
    """Parse an unsigned integer element. Raises DamagedError for more than 8 bytes."""
    if len(content) > 8:
        raise DamagedError(f"found a number of {len(content)} bytes")
    return int.from_bytes(content, "big")


def children(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ID and content of the children of a master element. Raises DamagedError if one exceeds its parent."""
    at = 0
    while at < len(content):
        head = element_head(content, at)
        if head is None or head[1] is None or head[2] + head[1] > len(content):
            raise DamagedError("an element exceeds its parent")
        start, at = head[2], head[2] + head[1]
        yield head[0], content[start:at]


def video_track(content: bytes) -> Track | None:
    """Return the first video track of a Tracks element."""
    for kind, entry in children(content):
        fields = dict(children(entry)) if kind == _TRACK_ENTRY else {}
        if fields and number(fields.get(_TRACK_TYPE, b"")) == _VIDEO:
            codec = fields.get(_CODEC_ID, b"").rstrip(b"\0").decode("ascii", "replace")
            track = number(fields.get(_TRACK_NUMBER, b""))
            return Track(track, codec, fields.get(_CODEC_PRIVATE, b""), _ENCODINGS in fields)
    return None


def read_tags(content: bytes) -> dict[str, str]:
    """Return names and strings of all simple tags of a Tags element, without nested and binary ones."""
    found: dict[str, str] = {}
    for kind, tag in children(content):
        for inner, simple in children(tag) if kind == _TAG else ():
            fields = dict(children(simple)) if inner == _SIMPLE_TAG else {}
            if _TAG_NAME in fields and _TAG_STRING in fields:
                name, text = (fields[key].rstrip(b"\0").decode("utf-8", "replace") for key in (_TAG_NAME, _TAG_STRING))
                found[name] = text
    return found
