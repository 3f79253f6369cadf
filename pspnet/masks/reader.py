"""Mask reader: `read_masks()` over files, folders, S3 and bytes, and random access to one segment."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pspnet.masks.codec import MAX_PIXELS, Form, MaskFileError, decode
from pspnet.masks.png import SIGNATURE
from pspnet.masks.segment import (
    END_MAGIC,
    HEADER,
    INDEX_ENTRY,
    MAGIC,
    OPEN_SUFFIX,
    PNG_SUFFIX,
    RECORD_MARKER,
    TRAILER,
    MaskName,
    RecordHead,
    header_size,
    read_name,
    unpack_header,
    unpack_index,
    unpack_record,
)
from pspnet.masks.storage import ByteRanges, BytesInMemory, BytesOfFile, FileGone, list_masks

PNG_KEYWORD = "pspnet"
"""Keyword of the PNG text chunk (tEXt) with frame, captured, timestamp, latency and labels as JSON."""

_START = 8_192  # bytes read from the beginning of a segment: fits the header of some hundred classes
_TAIL = 65_536  # bytes read from the end of a segment first: fits the index of some thousand records
_BLOCK = 4_194_304  # bytes per read of consecutive records
_MAX_PNG = 268_435_456
_MICROSECOND = 1e-6  # resolution of the times in names, which are rounded down


@dataclass(frozen=True)
class MaskRecord:
    """A stored mask.

    frame: number of the frame in its source. captured: seconds since the epoch. timestamp: seconds since the stream
    began. latency: seconds from the frame's arrival to its mask, NaN if unknown. labels: metadata from the source.
    mask: (H, W) uint8 class ids. class_names, palette ((256, 3) uint8): if they were stored.
    """

    frame: int
    captured: float
    timestamp: float
    latency: float
    labels: Mapping[str, str]
    mask: np.ndarray
    class_names: tuple[str, ...] = ()
    palette: np.ndarray | None = None


class MaskSegment:
    """Reader of one segment. The index is read on construction, masks on demand.

    header: metadata shared by all masks. entries: INDEX_ENTRY values in the order of the records.
    complete: False if the file has no index because its writer is still running or was killed; then the whole file is
    scanned, and records that are damaged, or depend on a damaged one, are skipped.
    """

    def __init__(self, source: ByteRanges | bytes | Path) -> None:
        """Raises MaskFileError if `source` is not a segment."""
        if isinstance(source, bytes):
            source = BytesInMemory(source)
        self._source: ByteRanges = BytesOfFile(source) if isinstance(source, Path) else source
        self.name = self._source.name
        start = self._source.read(0, _START)
        self._data_start = header_size(start, self.name)
        if self._data_start > _START:
            start += self._source.read(_START, self._data_start - _START)
        self.header = unpack_header(start, self.name)
        entries = self._read_index()
        self.complete = entries is not None
        self.entries = self._scan() if entries is None else entries

    def __len__(self) -> int:
        return len(self.entries)

    def _read_index(self) -> np.ndarray | None:
        size = self._source.size
        tail = self._source.read(max(0, size - _TAIL), _TAIL)
        if len(tail) < TRAILER.size:
            return None
        offset, length, magic = TRAILER.unpack(tail[-TRAILER.size :])
        if magic != END_MAGIC or offset + length + TRAILER.size != size or offset < self._data_start:
            return None
        missing = length + TRAILER.size - len(tail)
        if missing > 0:
            tail = self._source.read(offset, missing) + tail
        entries = unpack_index(tail[-TRAILER.size - length : -TRAILER.size])
        return entries if entries is not None and _is_consistent(entries, self._data_start, offset) else None

    def _scan(self) -> np.ndarray:
        """Rebuild the index from the records."""
        data = self._source.read(0, self._source.size)
        found: list[tuple[int, float, float, int, int, int]] = []
        offset, key, intact = self._data_start, 0, False
        while True:
            record = unpack_record(data, offset)
            if record is None:
                intact = False  # later records are unreadable until the next key record
                offset = data.find(RECORD_MARKER, offset + 1)
                if offset < 0:
                    return np.array(found, dtype=INDEX_ENTRY)
                continue
            head, _, end = record
            if head.key or intact:
                key, intact = len(found) if head.key else key, True
                found.append((head.frame, head.captured, head.timestamp, offset, end - offset, key))
            offset = end

    def head(self, number: int) -> RecordHead:
        """Return a record without its mask, with its labels as stored. Raises MaskFileError."""
        return self._unpack(number, self._read(number, number + 1), 0)[0]

    def record(self, number: int) -> MaskRecord:
        """Return a record by its position. Reads only the bytes from its key record to it. Raises MaskFileError."""
        return next(self.records([number]))

    def records(self, numbers: Collection[int] | None = None) -> Iterator[MaskRecord]:
        """Yield records in the order of the segment; all, or those at these positions. Raises MaskFileError."""
        wanted = range(len(self)) if numbers is None else sorted(set(numbers))
        last, mask, labels = -1, np.zeros((0, 0), dtype=np.uint8), {}  # type: int, np.ndarray, Mapping[str, str]
        block, start, end = b"", 0, 0
        for number in wanted:
            key = int(self.entries["key"][number])
            for step in range(last + 1 if key <= last < number else key, number + 1):
                if not start <= step < end:
                    start, end = step, self._block_end(step, number if numbers is not None else len(self) - 1)
                    block = self._read(start, end)
                offset = int(self.entries["offset"][step]) - int(self.entries["offset"][start])
                head, payload = self._unpack(step, block, offset)
                mask = self._decode(step, head, payload, mask)
                labels = labels if head.labels is None else head.labels
                last = step
            yield self._record(number, mask, labels, head.latency)

    def _block_end(self, first: int, last: int) -> int:
        """Return the end of the records, from `first` to `last` at most, that one read fetches."""
        limit = int(self.entries["offset"][first]) + _BLOCK
        end = int(np.searchsorted(self.entries["offset"], limit))
        return max(first + 1, min(end, last + 1))

    def _read(self, first: int, end: int) -> bytes:
        start = int(self.entries["offset"][first])
        stop = int(self.entries["offset"][end - 1]) + int(self.entries["length"][end - 1])
        return self._source.read(start, stop - start)

    def _unpack(self, number: int, block: bytes, offset: int) -> tuple[RecordHead, bytes]:
        found = unpack_record(block, offset)
        if found is None:
            raise MaskFileError(f"{self.name}: record {number} at byte {self.entries['offset'][number]} is damaged.")
        return found[0], found[1]

    def _decode(self, number: int, head: RecordHead, payload: bytes, previous: np.ndarray | None) -> np.ndarray:
        try:
            return decode(head.form, payload, self.header.height, self.header.width, previous)
        except MaskFileError as error:
            raise MaskFileError(f"{self.name}: record {number}: {error}") from error

    def _record(self, number: int, mask: np.ndarray, labels: Mapping[str, str], latency: float) -> MaskRecord:
        entry, header = self.entries[number], self.header
        return MaskRecord(
            int(entry["frame"]), float(entry["captured"]), float(entry["timestamp"]), latency, labels, mask,
            header.class_names, header.palette,
        )  # fmt: skip


def _is_consistent(entries: np.ndarray, start: int, end: int) -> bool:
    """Return whether all records of an index are between two offsets, in order, so that no other bytes are read."""
    numbers = np.arange(len(entries))
    ends = entries["offset"] + entries["length"]
    return bool(
        (entries["offset"] >= start).all()
        and (entries["offset"] < end).all()
        and (ends <= end).all()
        and (ends[:-1] <= entries["offset"][1:]).all()
        and (entries["key"] <= numbers).all()
    )


# --- masks of any storage ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Selection:
    """Requested records."""

    start: float
    stop: float
    frames: Collection[int] | None

    def may_be_in(self, name: MaskName | None) -> bool:
        """Return whether a file of that name may contain one."""
        if name is None:
            return True
        single = name.suffix == PNG_SUFFIX
        last = name.captured if single else (math.inf if name.last_captured is None else name.last_captured)
        if name.captured >= self.stop or last + 2 * _MICROSECOND < self.start:
            return False
        if self.frames is None or not len(self.frames):
            return self.frames is None
        last_frame = name.frame if single else name.last_frame
        return max(self.frames) >= name.frame and (last_frame is None or min(self.frames) <= last_frame)

    def includes(self, frame: int, captured: float) -> bool:
        """Return whether a record is requested."""
        return self.start <= captured < self.stop and (self.frames is None or frame in self.frames)


def read_masks(
    where: str | Path | bytes,
    start: float | datetime | None = None,
    stop: float | datetime | None = None,
    frames: int | Collection[int] | None = None,
    client: Any = None,
) -> Iterator[MaskRecord]:
    """Yield the masks of a file, folder, `s3://BUCKET/PREFIX`, S3 object or bytes, in order of capture time.

    Files whose names exclude the requested masks are not opened; of the others only the index and the requested parts
    are read.

    Args:
        where: a segment, a mask's PNG file, or a folder or prefix with such files; other files there are ignored.
        start, stop: seconds since the epoch, or a datetime: masks captured from `start` on, and before `stop`.
        frames: frame numbers in the source: an int, a range, or any collection.
        client: boto3 client for S3; default: created from the environment.

    Raises MaskFileError if `where` does not exist, and, while reading, for a damaged file.
    """
    chosen = [frames] if isinstance(frames, int) else frames
    if chosen is not None and not isinstance(chosen, range):
        chosen = frozenset(chosen)
    selection = _Selection(_seconds(start, -math.inf), _seconds(stop, math.inf), chosen)
    files: list[tuple[str, Any]] = (
        [("", lambda: BytesInMemory(where))] if isinstance(where, bytes) else list_masks(where, client)
    )
    return _read_files(files, selection)


def _seconds(time: float | datetime | None, default: float) -> float:
    if time is None:
        return default
    if not isinstance(time, datetime):
        return float(time)
    if time.tzinfo is None:
        raise MaskFileError(f"The time {time} has no time zone; give one, such as datetime.timezone.utc.")
    return time.timestamp()


def _read_files(files: list[tuple[str, Any]], selection: _Selection) -> Iterator[MaskRecord]:
    names = {name for name, _ in files}
    for name, open_file in files:
        parsed = read_name(name)
        if not selection.may_be_in(parsed):
            continue
        try:
            source: ByteRanges = open_file()
            if name.endswith(OPEN_SUFFIX) and (_has_partial_header(source) or _is_listed(source, name, names)):
                continue
        except FileGone:  # a segment without a mask, or deleted
            continue
        # A known name gives the type, which saves a request; otherwise the type is read from the first bytes.
        if parsed.suffix == PNG_SUFFIX if parsed else source.read(0, len(SIGNATURE)) == SIGNATURE:
            record = read_png(source, parsed)
            if selection.includes(record.frame, record.captured):
                yield record
            continue
        segment = MaskSegment(source)
        pairs = zip(segment.entries["frame"].tolist(), segment.entries["captured"].tolist())
        numbers = [number for number, (frame, captured) in enumerate(pairs) if selection.includes(frame, captured)]
        yield from segment.records(numbers if len(numbers) < len(segment) else None)


def _has_partial_header(source: ByteRanges) -> bool:
    """Return whether a file ends within a segment's header: its writer was killed there, or is still writing it."""
    start = source.read(0, HEADER.size)
    if len(start) < HEADER.size:
        return start[: len(MAGIC)] == MAGIC[: len(start)]
    return source.size < header_size(start, source.name)


def _is_listed(source: ByteRanges, name: str, names: Collection[str]) -> bool:
    """Return whether a segment was renamed since it was listed as `name`, and its new name is listed too."""
    now = Path(source.name).name
    return now != name and now in names


def read_png(source: ByteRanges, name: MaskName | None = None) -> MaskRecord:
    """Read a mask's PNG file. Times come from its text chunk; without one, the capture time comes from the name."""
    if source.size > _MAX_PNG:
        raise MaskFileError(f"{source.name}: has {source.size:,} bytes; expected at most {_MAX_PNG:,}.")
    data = source.read(0, source.size)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
            about = json.loads(str(image.info.get(PNG_KEYWORD, "{}")))
            colours = image.palette.tobytes() if image.palette is not None else b""
        frame = int(about.get("frame", name.frame if name else 0))
        times = [float(about.get(key, math.nan)) for key in ("captured", "timestamp", "latency")]
        labels = {str(key): str(value) for key, value in about.get("labels", {}).items()}
        mask = decode(Form.PNG, data, height, width) if height * width <= MAX_PIXELS else None
    except MaskFileError as error:
        raise MaskFileError(f"{source.name}: {error}") from error
    except Exception as error:  # Pillow reports damage in many ways; JSON in two
        raise MaskFileError(f"{source.name}: not a readable PNG file of a mask.") from error
    if mask is None:
        raise MaskFileError(f"{source.name}: has {width}x{height} pixels; expected at most {MAX_PIXELS:,}.")
    captured = times[0] if not math.isnan(times[0]) else (name.captured if name else 0.0)
    palette = np.zeros((256, 3), dtype=np.uint8)
    known = np.frombuffer(colours, dtype=np.uint8)[: 768 - len(colours) % 3].reshape(-1, 3)[:256]
    palette[: len(known)] = known
    return MaskRecord(frame, captured, times[1], times[2], labels, mask, (), palette if len(known) else None)
