"""Mask segment writer: one segment into a binary file, and a sequence of segments into a folder."""

from __future__ import annotations

import json
import math
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from pspnet.masks.codec import DEFAULT_ENCODING, UP, MaskFileError, encode, encode_png
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.reader import PNG_KEYWORD, MaskSegment
from pspnet.masks.segment import INDEX_ENTRY, OPEN_SUFFIX, SUFFIX, RecordHead, SegmentHeader, mask_name, pack_index

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of stored masks.

    encoding: one of ENCODINGS for segments; "files" for one PNG file per mask.
    seconds, frames, size: maximum duration, number of masks and bytes of a segment.
    """

    encoding: str = DEFAULT_ENCODING
    seconds: float = 10.0
    frames: int = 1000
    size: int = 16_777_216


def head_of(item: MaskedFrame) -> RecordHead:
    """Return the record head of an item. A spilled item has no `arrived`, so its latency is unknown."""
    frame = item.frame
    latency = item.inferred - frame.arrived if frame.arrived > 0 else float("nan")
    return RecordHead(frame.index, frame.captured, frame.timestamp, latency, dict(frame.labels))


def png_file(item: MaskedFrame, palette: np.ndarray | None, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Encode a mask as a PNG file, with the frame's number, times and labels; `palette` None: grey.

    strategy: of zlib; Z_RLE is fast, but gives a larger file.
    """
    head = head_of(item)
    about: dict[str, Any] = {"frame": head.frame, "captured": head.captured, "timestamp": head.timestamp}
    about["labels"] = head.labels
    if not math.isnan(head.latency):
        about["latency"] = round(head.latency, 6)
    texts = {PNG_KEYWORD: json.dumps(about)}
    if strategy == zlib.Z_RLE:
        return encode_png(item.mask, palette, bits=8, filter_type=UP, strategy=strategy, texts=texts)
    return encode_png(item.mask, palette, texts=texts)


class SegmentWriter:
    """Writer of one segment. Every record is passed to the operating system immediately."""

    def __init__(self, file: BinaryIO, header: SegmentHeader) -> None:
        """file: unbuffered (buffering=0), so that a failed write leaves nothing in a buffer. Raises OSError."""
        self._file, self.header = file, header
        self._entries: list[tuple[int, float, float, int, int, int]] = []
        self.size = 0
        self._write(header.pack())

    def __len__(self) -> int:
        return len(self._entries)

    def _write(self, data: bytes) -> None:
        """Write all of `data`; truncate the file to its previous size if that fails."""
        rest = memoryview(data)
        try:
            while rest:  # a write may be partial
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.seek(self.size)
            self._file.truncate()
            raise
        self.size += len(data)

    def append(self, head: RecordHead, mask: np.ndarray) -> None:
        """Add a mask. Raises OSError if the write fails; then the segment is unchanged."""
        encoded = encode(mask, self.header.encoding)
        packed = replace(head, form=encoded.form).pack(encoded.data)
        offset = self.size
        self._write(packed)
        entry = (head.frame, head.captured, head.timestamp, offset, len(packed), len(self._entries))
        self._entries.append(entry)

    def finish(self) -> None:
        """Write the index. The file stays open."""
        self._write(pack_index(np.array(self._entries, dtype=INDEX_ENTRY), self.size))


class SegmentFolder:
    """Writer of a sequence of segments in a folder, with names that sort by time.

    The segment that is being written ends in `.pspm.open` and is locked, which distinguishes it from one whose writer
    was killed. A finished segment is renamed atomically after its index was synced to disk.
    """

    def __init__(self, folder: Path, settings: SegmentSettings, template: SegmentHeader) -> None:
        """template: a header without size. Segments left open by a killed writer are finished. Raises OSError."""
        self.folder, self._settings, self._template = folder, settings, template
        self._writer: SegmentWriter | None = None
        self._file: BinaryIO | None = None
        self._path = folder
        self._first: RecordHead | None = None
        self._last: RecordHead | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"*{OPEN_SUFFIX}")):
            _recover(path)

    @property
    def size(self) -> int:
        """Bytes of the open segment."""
        return 0 if self._writer is None else self._writer.size

    def full(self, item: MaskedFrame) -> bool:
        """Return whether the open segment must end before this item."""
        writer, first, last = self._writer, self._first, self._last
        if writer is None or first is None or last is None:
            return False
        captured, settings = item.frame.captured, self._settings
        return (
            len(writer) >= settings.frames
            or writer.size >= settings.size
            or not last.captured <= captured < first.captured + settings.seconds
            or item.frame.index <= last.frame  # a name's two numbers must bound the frames of the segment
            or (writer.header.height, writer.header.width) != item.mask.shape
        )

    def append(self, item: MaskedFrame) -> None:
        """Write an item, into a new segment if the open one is full. Raises OSError if it was not written."""
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
        template = self._template
        height, width = mask.shape
        encoding = self._settings.encoding
        header = SegmentHeader(height, width, template.class_names, template.palette, encoding, template.source)
        path, file = self._create(head)
        _lock(file)
        try:
            self._writer = SegmentWriter(file, header)
        except OSError:
            file.close()
            path.unlink()
            raise
        self._path, self._file = path, file

    def _create(self, head: RecordHead) -> tuple[Path, BinaryIO]:
        """Create an unbuffered file for a segment that begins with this record."""
        for again in range(1_000_000):
            path = self.folder / mask_name(head, None, OPEN_SUFFIX, again)
            try:
                return path, cast(BinaryIO, open(path, "xb", buffering=0))
            except FileExistsError:
                continue
        raise FileExistsError(f"{self.folder}: a million segments have this name.")

    def finish(self) -> Path | None:
        """Finish the open segment and return its path, or None without one. Raises OSError; can be retried."""
        if self._writer is None or self._file is None:
            return None
        path = None
        if self._first is not None and self._last is not None:
            self._writer.finish()
            os.fsync(self._file.fileno())
            path = _rename(self._path, self._first, self._last)
        else:
            self._path.unlink()
        self._file.close()
        self._writer, self._file, self._first, self._last = None, None, None, None
        return path


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return False if another process holds the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _rename(path: Path, first: RecordHead, last: RecordHead) -> Path:
    """Rename a finished segment to an unused final name."""
    for again in range(1_000_000):
        target = path.with_name(mask_name(first, last, SUFFIX, again))
        if not target.exists():
            path.rename(target)
            return target
    raise FileExistsError(f"{path}: a million segments have this name.")


def _recover(path: Path) -> None:
    """Finish a segment left open by a killed writer; delete one without a complete record."""
    with open(path, "r+b") as file:
        if not _lock(file):
            return
        try:
            segment = MaskSegment(path)
        except MaskFileError:
            # The header is incomplete, so no record follows it.
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
        _rename(path, first, last)
