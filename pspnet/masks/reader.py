"""Reads masks back: `read_masks()` over files, folders, S3 and bytes, and one segment at random.

Needs numpy and Pillow only (boto3 for S3), so a small function in the cloud can carry it.
"""

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
"""Under it, a PNG file of a mask holds frame, captured, timestamp, latency and labels as JSON (tEXt)."""

_START = 8_192  # read from a segment's beginning: holds the header of some hundred classes
_TAIL = 65_536  # read from a segment's end first: holds the index of some thousands of records
_BLOCK = 4_194_304  # read at a time when one record after another is wanted
_MAX_PNG = 268_435_456
_MICROSECOND = 1e-6  # names round times down to it


@dataclass(frozen=True)
class MaskRecord:
    """A mask as it was stored.

    frame: the frame's number in its source. captured: seconds since the epoch. timestamp: seconds since the stream
    began. latency: seconds from the frame's arrival to its mask, NaN where nobody knows. labels: what the source said
    of the frame. mask: (H, W) uint8 class ids. class_names, palette: as far as they were stored; (256, 3) uint8.
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
    """One segment: its index is read at once, masks when they are asked for.

    header: what all its masks have in common. entries: INDEX_ENTRY values in the order in which they were written.
    complete: False where the file has no index, because its writer is still at work or was killed; then the whole file
    was read, and records that are damaged, or need a damaged one, are left out.
    """

    def __init__(self, source: ByteRanges | bytes | Path) -> None:
        """Raises MaskFileError for anything that is no segment."""
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
        return entries if entries is not None and _sound(entries, self._data_start, offset) else None

    def _scan(self) -> np.ndarray:
        """The index from the records themselves."""
        data = self._source.read(0, self._source.size)
        found: list[tuple[int, float, float, int, int, int]] = []
        offset, key, intact = self._data_start, 0, False
        while True:
            one = unpack_record(data, offset)
            if one is None:
                intact = False  # what follows needs a key record first
                offset = data.find(RECORD_MARKER, offset + 1)
                if offset < 0:
                    return np.array(found, dtype=INDEX_ENTRY)
                continue
            head, _, end = one
            if head.key or intact:
                key, intact = len(found) if head.key else key, True
                found.append((head.frame, head.captured, head.timestamp, offset, end - offset, key))
            offset = end

    def head(self, number: int) -> RecordHead:
        """A record of the segment without its mask, its labels as they are written. Raises MaskFileError."""
        return self._unpack(number, self._read(number, number + 1), 0)[0]

    def record(self, number: int) -> MaskRecord:
        """A record by its place in the segment. Reads no more than what lies between it and its key record."""
        return next(self.records([number]))

    def records(self, numbers: Collection[int] | None = None) -> Iterator[MaskRecord]:
        """Records in the order of the segment; all of them, or those at these places. Raises MaskFileError."""
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
        """The end of as many records from `first` on as one read should fetch, and no further than `last`."""
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


def _sound(entries: np.ndarray, start: int, end: int) -> bool:
    """Whether an index can be true of records between two places, so that nothing else is ever read."""
    numbers = np.arange(len(entries))
    ends = entries["offset"] + entries["length"]
    return bool(
        (entries["offset"] >= start).all()
        and (entries["offset"] < end).all()
        and (ends <= end).all()
        and (ends[:-1] <= entries["offset"][1:]).all()
        and (entries["key"] <= numbers).all()
    )


# --- masks of any place -----------------------------------------------------------------------------------------------

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Wanted:
    """Which records are asked for."""

    start: float
    stop: float
    frames: Collection[int] | None

    def may_be_in(self, name: MaskName | None) -> bool:
        """Whether a file of that name may hold one."""
        if name is None:
            return True
        alone = name.suffix == PNG_SUFFIX
        last = name.captured if alone else (math.inf if name.last_captured is None else name.last_captured)
        if name.captured >= self.stop or last + 2 * _MICROSECOND < self.start:
            return False
        if self.frames is None or not len(self.frames):
            return self.frames is None
        last_frame = name.frame if alone else name.last_frame
        return max(self.frames) >= name.frame and (last_frame is None or min(self.frames) <= last_frame)

    def includes(self, frame: int, captured: float) -> bool:
        """Whether a record is one."""
        return self.start <= captured < self.stop and (self.frames is None or frame in self.frames)


def read_masks(
    where: str | Path | bytes,
    start: float | datetime | None = None,
    stop: float | datetime | None = None,
    frames: int | Collection[int] | None = None,
    client: Any = None,
) -> Iterator[MaskRecord]:
    """The masks of a file, a folder, `s3://BUCKET/PREFIX`, an object there, or bytes, in the order of their times.

    Names and indices say where a mask is: files that hold nothing of what is asked for are not opened, and of the
    others only the index and the parts asked for are read.

    Args:
        where: a segment or a mask's PNG file, or a place that holds such files; others there are passed over.
        start, stop: seconds since the epoch, or a datetime: masks captured from `start` on, and before `stop`.
        frames: numbers of frames in their source: one, a range, or any collection.
        client: of boto3, for S3; made from the environment if not given.

    Raises MaskFileError where there is nothing at that place, and, while reading, for a damaged file.
    """
    chosen = [frames] if isinstance(frames, int) else frames
    if chosen is not None and not isinstance(chosen, range):
        chosen = frozenset(chosen)
    wanted = _Wanted(_seconds(start, -math.inf), _seconds(stop, math.inf), chosen)
    places: list[tuple[str, Any]] = (
        [("", lambda: BytesInMemory(where))] if isinstance(where, bytes) else list_masks(where, client)
    )
    return _read_places(places, wanted)


def _seconds(time: float | datetime | None, default: float) -> float:
    if time is None:
        return default
    if not isinstance(time, datetime):
        return float(time)
    if time.tzinfo is None:
        raise MaskFileError(f"The time {time} has no time zone; give one, such as datetime.timezone.utc.")
    return time.timestamp()


def _read_places(places: list[tuple[str, Any]], wanted: _Wanted) -> Iterator[MaskRecord]:
    names = {name for name, _ in places}
    for name, opened in places:
        said = read_name(name)
        if not wanted.may_be_in(said):
            continue
        try:
            source: ByteRanges = opened()
            if name.endswith(OPEN_SUFFIX) and (_has_just_begun(source) or _is_listed(source, name, names)):
                continue
        except FileGone:  # a segment without a mask, or deleted
            continue
        # The name tells what it is, which saves a request; bytes and files of other names have to be asked.
        if said.suffix == PNG_SUFFIX if said else source.read(0, len(_PNG_MAGIC)) == _PNG_MAGIC:
            record = _read_png(source, said)
            if wanted.includes(record.frame, record.captured):
                yield record
            continue
        segment = MaskSegment(source)
        pairs = zip(segment.entries["frame"].tolist(), segment.entries["captured"].tolist())
        numbers = [number for number, (frame, captured) in enumerate(pairs) if wanted.includes(frame, captured)]
        yield from segment.records(numbers if len(numbers) < len(segment) else None)


def _has_just_begun(source: ByteRanges) -> bool:
    """Whether a file ends within a segment's header: its writer was stopped there, or is still at it."""
    start = source.read(0, HEADER.size)
    if len(start) < HEADER.size:
        return start[: len(MAGIC)] == MAGIC[: len(start)]
    return source.size < header_size(start, source.name)


def _is_listed(source: ByteRanges, name: str, names: Collection[str]) -> bool:
    """Whether a segment was finished since it was listed as `name`, and is among the others under its new name."""
    now = Path(source.name).name
    return now != name and now in names


def _read_png(source: ByteRanges, name: MaskName | None) -> MaskRecord:
    """A mask's own file. Its times are in it; of a foreign PNG file the name tells them, or nobody."""
    if source.size > _MAX_PNG:
        raise MaskFileError(f"{source.name}: has {source.size:,} bytes; a mask has at most {_MAX_PNG:,}.")
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
        raise MaskFileError(f"{source.name}: is no readable PNG file of a mask.") from error
    if mask is None:
        raise MaskFileError(f"{source.name}: has {width}x{height} pixels; a mask has at most {MAX_PIXELS:,}.")
    captured = times[0] if not math.isnan(times[0]) else (name.captured if name else 0.0)
    palette = np.zeros((256, 3), dtype=np.uint8)
    known = np.frombuffer(colours, dtype=np.uint8)[: 768 - len(colours) % 3].reshape(-1, 3)[:256]
    palette[: len(known)] = known
    return MaskRecord(frame, captured, times[1], times[2], labels, mask, (), palette if len(known) else None)
