"""Writes mask segments: one into any file, and one after another into a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pspnet.errors import ConfigError
from pspnet.masks.codec import DEFAULT_ENCODING, ENCODINGS, KEY_FORMS, MaskFileError, encode
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.reader import MaskSegment
from pspnet.masks.segment import INDEX_ENTRY, OPEN_SUFFIX, SUFFIX, RecordHead, SegmentHeader, mask_name, pack_index

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class SegmentSettings:
    """How masks are kept.

    encoding: one of ENCODINGS, for segments; "files" for one PNG file a mask.
    seconds, frames, size: a segment ends before it would hold more seconds, frames or bytes than this.
    key_every: records from one that is readable alone to the next one; fewer are quicker to find, more are smaller.
    """

    encoding: str = DEFAULT_ENCODING
    seconds: float = 10.0
    frames: int = 1000
    size: int = 16_777_216
    key_every: int = 30

    def __post_init__(self) -> None:
        if self.encoding not in (*ENCODINGS, "files"):
            raise ConfigError(f"mask_encoding: found {self.encoding!r}; expected {', '.join(ENCODINGS)} or files.")
        for name in ("seconds", "frames", "size", "key_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: found {getattr(self, name)!r}; expected more than 0.")


_NAMES = {
    "mask_encoding": "encoding",
    "segment_seconds": "seconds",
    "segment_frames": "frames",
    "key_every": "key_every",
}


def read_settings(settings: Mapping[str, str]) -> SegmentSettings:
    """SegmentSettings from texts: mask_encoding, segment_seconds, segment_frames, key_every. Raises ConfigError."""
    values: dict[str, str | float | int] = {}
    for key, name in _NAMES.items():
        if key in settings:
            kind = type(getattr(SegmentSettings, name))
            try:
                values[name] = kind(settings[key])
            except ValueError:
                raise ConfigError(f"{key}: found {settings[key]!r}; expected a number above 0.") from None
    return SegmentSettings(**values)  # type: ignore[arg-type]


def head_of(item: MaskedFrame) -> RecordHead:
    """What a record says of a frame. An item that waited on disk has lost its `arrived`, so its latency is unknown."""
    frame = item.frame
    latency = item.inferred - frame.arrived if frame.arrived > 0 else float("nan")
    return RecordHead(frame.index, frame.captured, frame.timestamp, latency, dict(frame.labels))


class SegmentWriter:
    """One segment, written from its beginning into a binary file. Every record reaches the operating system at once."""

    def __init__(self, file: BinaryIO, header: SegmentHeader, key_every: int = SegmentSettings.key_every) -> None:
        """file: without a buffer (buffering=0), which would keep what could not be written. Raises OSError."""
        self._file, self._key_every = file, key_every
        self.header = header
        self._entries: list[tuple[int, float, float, int, int, int]] = []
        self._previous: np.ndarray | None = None
        self._labels: Mapping[str, str] | None = None
        self.size = 0
        self._write(header.pack())

    def __len__(self) -> int:
        return len(self._entries)

    def _write(self, data: bytes) -> None:
        """All of `data`, or nothing: what was written of it is taken back before the error goes on."""
        rest = memoryview(data)
        try:
            while rest:  # the system may take a part
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.seek(self.size)
            self._file.truncate()
            raise
        self.size += len(data)

    def append(self, head: RecordHead, mask: np.ndarray) -> None:
        """Add a mask. Raises OSError where the file cannot take it; then the segment is as it was."""
        number = len(self._entries)
        last_key = self._entries[-1][5] if self._entries else 0
        previous = self._previous if number and number - last_key < self._key_every else None
        encoded = encode(mask, self.header.encoding, previous)
        key = encoded.form in KEY_FORMS
        labels = None if not key and head.labels == self._labels else head.labels
        record = RecordHead(head.frame, head.captured, head.timestamp, head.latency, labels, encoded.form, key)
        offset = self.size
        packed = record.pack(encoded.data)
        self._write(packed)
        entry = (head.frame, head.captured, head.timestamp, offset, len(packed), number if key else last_key)
        self._entries.append(entry)
        self._previous, self._labels = mask.copy(), head.labels

    def finish(self) -> None:
        """Write the index. The file stays open."""
        self._write(pack_index(np.array(self._entries, dtype=INDEX_ENTRY), self.size))


class SegmentFolder:
    """Segments in a folder, one after another; each has a name that sorts by time.

    The one that is being written is called `.pspm.open`, and is locked, so that nobody takes it for one whose writer
    was killed. A segment's file appears under its last name when its index is in it and on the disk.
    """

    def __init__(self, folder: Path, settings: SegmentSettings, about: SegmentHeader) -> None:
        """`about`: a header without size. Segments that a killed writer left are completed. Raises OSError."""
        self.folder, self._settings, self._about = folder, settings, about
        self._writer: SegmentWriter | None = None
        self._file: BinaryIO | None = None
        self._path = folder
        self._first: RecordHead | None = None
        self._last: RecordHead | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"*{OPEN_SUFFIX}")):
            _complete(path)

    def full(self, item: MaskedFrame) -> bool:
        """Whether the open segment has to end before it could take this item."""
        writer, first, last = self._writer, self._first, self._last
        if writer is None or first is None or last is None:
            return False
        captured, settings = item.frame.captured, self._settings
        return (
            len(writer) >= settings.frames
            or writer.size >= settings.size
            or not last.captured <= captured < first.captured + settings.seconds
            or item.frame.index <= last.frame  # so that a name's two numbers tell which frames are inside
            or (writer.header.height, writer.header.width) != item.mask.shape
        )

    def append(self, item: MaskedFrame) -> None:
        """Write an item, into a new segment where the old one is full. Raises OSError: then it was not written."""
        if self.full(item):
            self.finish()
        head = head_of(item)
        if self._writer is None:
            self._begin(head, item.mask)
        assert self._writer is not None
        self._writer.append(head, item.mask)
        self._first = self._first or head
        self._last = head

    def _begin(self, head: RecordHead, mask: np.ndarray) -> None:
        about = self._about
        height, width = mask.shape
        encoding = self._settings.encoding
        header = SegmentHeader(height, width, about.class_names, about.palette, encoding, about.source)
        path, file = self._create(head)
        _lock(file)
        try:
            self._writer = SegmentWriter(file, header, self._settings.key_every)
        except OSError:
            file.close()
            path.unlink()
            raise
        self._path, self._file = path, file

    def _create(self, head: RecordHead) -> tuple[Path, BinaryIO]:
        """A new file for a segment that begins with this record. It has no buffer, as SegmentWriter asks for."""
        for again in range(1_000_000):
            path = self.folder / mask_name(head, None, OPEN_SUFFIX, again)
            try:
                return path, cast(BinaryIO, open(path, "xb", buffering=0))
            except FileExistsError:
                continue
        raise FileExistsError(f"{self.folder}: there are a million segments of this name.")

    def finish(self) -> Path | None:
        """End the open segment; its path, or None where there was none. Raises OSError, and may be called again."""
        if self._writer is None or self._file is None:
            return None
        path = None
        if self._first is not None and self._last is not None:
            self._writer.finish()
            os.fsync(self._file.fileno())
            path = _settle(self._path, self._first, self._last)
        else:
            self._path.unlink()
        self._file.close()
        self._writer, self._file, self._first, self._last = None, None, None, None
        return path


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else has the file; it is this process's from now on, until it is closed."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _settle(path: Path, first: RecordHead, last: RecordHead) -> Path:
    """Give a finished segment its last name, which no file has yet."""
    for again in range(1_000_000):
        target = path.with_name(mask_name(first, last, SUFFIX, again))
        if not target.exists():
            path.rename(target)
            return target
    raise FileExistsError(f"{path}: there are a million segments of this name.")


def _complete(path: Path) -> None:
    """Give a segment that a killed writer left its index and its name; one without a whole record goes."""
    with open(path, "r+b") as file:
        if not _lock(file):
            return
        try:
            segment = MaskSegment(path)
        except MaskFileError:
            # Not even the header is whole, so there is no record behind it.
            path.rename(path.with_name(path.name + ".damaged"))
            return
        if not len(segment):
            path.unlink()
            return
        if not segment.complete:
            end = int(segment.entries["offset"][-1] + segment.entries["length"][-1])
            file.seek(end)
            file.truncate()
            file.write(pack_index(segment.entries, end))
            file.flush()
            os.fsync(file.fileno())
        first, last = segment.head(0), segment.head(len(segment) - 1)
        _settle(path, first, last)
