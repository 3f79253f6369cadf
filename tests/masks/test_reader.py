"""Reading masks by time and frame, with partial reads, and from damaged files."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.masks.codec import ENCODINGS, MaskFileError
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.segment import SegmentHeader, pack_index
from pspnet.masks.storage import BytesInMemory
from pspnet.masks.writer import SegmentFolder, SegmentSettings, SegmentWriter, head_of
from pspnet.stream import MaskSegment, read_masks
from pspnet.stream.sinks.base import SinkContext
from pspnet.stream.sinks.mask_files import FolderSink
from tests.masks.mask_items import START, item, scene
from tests.masks.old_segments import old_segment

ROOT = Path(__file__).resolve().parents[2]


def items(count: int, **size: int) -> list[MaskedFrame]:
    return [item(index, scene(index, **size), fragment=str(index // 4)) for index in range(count)]


def segment(count: int, encoding: str = "runs", **size: int) -> bytes:
    file = io.BytesIO()
    header = SegmentHeader(
        size.get("height", 24), size.get("width", 33), ("a", "b"), encoding=encoding, source="film.mkv"
    )
    writer = SegmentWriter(file, header)
    for masked in items(count, **size):
        writer.append(head_of(masked), masked.mask)
    writer.finish()
    return file.getvalue()


def folder(path: Path, count: int = 60, encoding: str = "runs") -> Path:
    """Write segments of one second, ten frames each; or PNG files."""
    sink = FolderSink(path, SinkContext(("a", "b")), SegmentSettings(encoding, seconds=0.95))
    for index in range(count):
        sink.write(item(index))
    sink.close()
    return path


class CountedBytes(BytesInMemory):
    """BytesInMemory that records its reads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        found = super().read(offset, length)
        self.reads.append((offset, len(found)))
        return found


@pytest.mark.parametrize("encoding", [*ENCODINGS, "temporal"])
def test_round_trip_of_records(encoding: str) -> None:
    data = old_segment(items(12)) if encoding == "temporal" else segment(12, encoding)
    records = list(read_masks(data))
    assert MaskSegment(data).header.encoding == encoding
    assert [record.frame for record in records] == list(range(12))
    for index, record in enumerate(records):
        assert np.array_equal(record.mask, scene(index))
        assert (record.captured, record.timestamp) == (START + index / 10, index / 10)
        assert record.latency == pytest.approx(0.5, abs=1e-6)
        assert record.labels == {"fragment": str(index // 4)}
        assert record.class_names == ("a", "b")


def test_one_record_is_read_without_the_whole_file() -> None:
    # In segments of former versions, decoding starts at the key record.
    for data, first in (
        (segment(200, height=120, width=160), 103),
        (old_segment(items(200, height=120, width=160), 4), 100),
    ):
        source = CountedBytes(data)
        found = MaskSegment(source)
        source.reads.clear()
        record = found.record(103)
        assert np.array_equal(record.mask, scene(103, 120, 160))
        assert record.labels == {"fragment": "25"}
        assert len(source.reads) == 1
        start, length = source.reads[0]
        assert start == found.entries["offset"][first]
        assert length == found.entries["length"][first:104].sum()
        assert length < len(data) / 20


def test_an_index_longer_than_the_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspnet.masks.reader._TAIL", 64)
    monkeypatch.setattr("pspnet.masks.reader._START", 64)
    source = CountedBytes(segment(50))
    assert len(MaskSegment(source)) == 50
    assert sum(length for _, length in source.reads) < source.size / 2


def test_a_header_longer_than_the_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspnet.masks.reader._START", 40)
    assert MaskSegment(segment(3)).header.class_names == ("a", "b")


def test_records_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspnet.masks.reader._BLOCK", 500)
    records = list(read_masks(segment(30)))
    assert all(np.array_equal(record.mask, scene(index)) for index, record in enumerate(records))
    assert len(records) == 30


def test_a_truncated_file_gives_its_complete_records() -> None:
    data = segment(20)
    whole = MaskSegment(data)
    assert whole.complete
    ends = (whole.entries["offset"] + whole.entries["length"]).astype(int)
    for cut in (len(data) - 1, int(ends[19]), int(ends[19]) - 1, int(ends[7]) + 10):
        part = MaskSegment(data[:cut])
        assert not part.complete
        assert len(part) == int((ends <= cut).sum())
        for index, record in enumerate(part.records()):
            assert np.array_equal(record.mask, scene(index))


def test_a_damaged_record_raises_with_an_index_and_is_skipped_without() -> None:
    # In the segment of a former version 8 and 9 depend on 7; 10 is a key record.
    for content, following in ((segment(20), 8), (old_segment(items(20)), 10)):
        data = bytearray(content)
        data[int(MaskSegment(content).entries["offset"][7]) + 50] ^= 255
        with pytest.raises(MaskFileError, match="record 7 at byte"):
            list(read_masks(bytes(data)))
        scanned = MaskSegment(bytes(data[:-1]))
        assert scanned.entries["frame"].tolist() == [0, 1, 2, 3, 4, 5, 6, *range(following, 20)]
        assert all(np.array_equal(record.mask, scene(record.frame)) for record in scanned.records())


def test_an_inconsistent_index_is_ignored() -> None:
    data = segment(5)
    found = MaskSegment(data)
    end = int(found.entries["offset"][-1] + found.entries["length"][-1])
    for field, value in (("offset", 2**63), ("length", 2**31), ("key", 4), ("offset", 0)):
        entries = found.entries.copy()
        entries[field][2] = value
        again = MaskSegment(data[:end] + pack_index(entries, end))
        assert not again.complete
        assert len(again) == 5


def test_selection_by_time_and_frame(tmp_path: Path) -> None:
    folder(tmp_path)
    assert [record.frame for record in read_masks(tmp_path, start=START + 1.95, stop=START + 2.25)] == [20, 21, 22]
    assert [record.frame for record in read_masks(tmp_path, frames=33)] == [33]
    assert [record.frame for record in read_masks(tmp_path, frames=[59, 2, 1000])] == [2, 59]
    assert [record.frame for record in read_masks(str(tmp_path), frames=range(5, 60, 25))] == [5, 30, 55]
    assert [record.frame for record in read_masks(tmp_path, start=START + 5, frames=range(55))] == [50, 51, 52, 53, 54]
    assert not list(read_masks(tmp_path, frames=[]))
    at = datetime.fromtimestamp(START + 5.85, timezone.utc)
    assert [record.frame for record in read_masks(tmp_path, start=at)] == [59]
    with pytest.raises(MaskFileError, match="no time zone"):
        read_masks(tmp_path, start=datetime(2024, 1, 1))


def test_files_without_requested_masks_are_not_opened(tmp_path: Path) -> None:
    folder(tmp_path)
    first, *_, last = sorted(tmp_path.iterdir())
    first.write_bytes(b"no segment")
    last.write_bytes(b"no segment")
    assert [record.frame for record in read_masks(tmp_path, frames=[12, 13])] == [12, 13]
    assert [record.frame for record in read_masks(tmp_path, start=START + 1.15, stop=START + 1.25)] == [12]
    with pytest.raises(MaskFileError, match="not a mask segment"):
        list(read_masks(tmp_path))


def test_png_files_store_their_times(tmp_path: Path) -> None:
    folder(tmp_path, 3, "files")
    records = list(read_masks(tmp_path))
    assert [(record.frame, record.captured, record.timestamp) for record in records] == [
        (index, START + index / 10, index / 10) for index in range(3)
    ]
    assert all(np.array_equal(record.mask, scene(index)) for index, record in enumerate(records))
    assert [record.frame for record in read_masks(tmp_path, frames=[1])] == [1]
    assert records[0].palette is not None
    assert records[0].latency == pytest.approx(0.5)


def test_a_png_file_of_another_program_is_read(tmp_path: Path) -> None:
    Image.fromarray(scene(0)).save(tmp_path / "some.png")
    (record,) = read_masks(tmp_path / "some.png")
    assert np.array_equal(record.mask, scene(0))
    assert (record.frame, record.captured) == (0, 0.0)
    assert math.isnan(record.timestamp)
    Image.new("RGB", (5, 5)).save(tmp_path / "rgb.png")
    with pytest.raises(MaskFileError, match=r"rgb\.png: The PNG has mode RGB"):
        list(read_masks(tmp_path / "rgb.png"))


def test_other_files_of_a_folder_are_ignored(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "more").mkdir()
    assert len(list(read_masks(tmp_path))) == 4


@pytest.mark.parametrize("length", [0, 3, 20, 40])
def test_a_segment_with_a_partial_header_is_ignored(tmp_path: Path, length: int) -> None:
    folder(tmp_path, 4)
    (tmp_path / "20231114T221319250000Z-000000000.pspm.open").write_bytes(SegmentHeader(24, 33).pack()[:length])
    assert [record.frame for record in read_masks(tmp_path)] == [0, 1, 2, 3]


def test_an_open_segment_with_other_content_raises(tmp_path: Path) -> None:
    (tmp_path / "20231114T221319250000Z-000000000.pspm.open").write_bytes(b"text")
    with pytest.raises(MaskFileError, match="not a mask segment"):
        list(read_masks(tmp_path))


def test_a_segment_finished_during_reading_is_read_once(tmp_path: Path) -> None:
    folder(tmp_path, 10)
    segments = SegmentFolder(tmp_path, SegmentSettings(), SegmentHeader(0, 0))
    for index in range(10, 14):
        segments.append(item(index))
    reading = read_masks(tmp_path)
    assert next(reading).frame == 0
    segments.finish()
    assert [record.frame for record in reading] == list(range(1, 14))
    # The same while the segment itself is being read.
    segments.append(item(20))
    segments.append(item(21))
    (path,) = tmp_path.glob("*.open")
    open_segment = MaskSegment(path)
    segments.finish()
    assert [record.frame for record in open_segment.records()] == [20, 21]


def test_an_open_segment_that_is_deleted_during_reading_is_ignored(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    left = tmp_path / "20231114T221320250000Z-000000000.1.pspm.open"  # has the first mask of the finished one
    other = tmp_path / "20231114T221340250000Z-000000200.pspm.open"
    for path in (left, other):
        path.write_bytes(SegmentHeader(24, 33).pack())
    reading = read_masks(tmp_path)
    left.unlink()
    other.unlink()
    assert [record.frame for record in reading] == [0, 1, 2, 3]
    with pytest.raises(MaskFileError, match="no such file"):
        read_masks(other)


def test_missing_files_raise(tmp_path: Path) -> None:
    with pytest.raises(MaskFileError, match="no such file or folder"):
        read_masks(tmp_path / "none")
    with pytest.raises(MaskFileError, match="has no bucket"):
        read_masks("s3://")
    with pytest.raises(MaskFileError, match="not a mask segment"):
        list(read_masks(b""))


def test_reading_imports_neither_torch_nor_video_packages() -> None:
    code = (
        "import sys, pspnet.stream; pspnet.stream.read_masks\n"
        "heavy = {'torch', 'av', 'pydantic', 'cv2', 'boto3', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
