"""Segments in a folder: limits, recovery after a killed process, and full disks."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pspnet.masks.segment import SegmentHeader
from pspnet.masks.writer import SegmentFolder, SegmentSettings, SegmentWriter, head_of
from pspnet.stream import MaskSegment, read_masks
from tests.masks.mask_items import item, scene

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = SegmentHeader(0, 0, ("a", "b"), source="film.mkv")


def lengths(folder: Path) -> list[int]:
    return [len(MaskSegment(path)) for path in sorted(folder.glob("*.pspm"))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SegmentSettings(seconds=0.45), [5, 5, 2]),
        (SegmentSettings(frames=7), [7, 5]),
        (SegmentSettings(size=1), [1] * 12),
        (SegmentSettings(), [12]),
    ],
)
def test_a_segment_ends_when_it_is_full(tmp_path: Path, settings: SegmentSettings, expected: list[int]) -> None:
    segments = SegmentFolder(tmp_path, settings, TEMPLATE)
    for index in range(12):
        segments.append(item(index))
    segments.finish()
    assert lengths(tmp_path) == expected
    assert [record.frame for record in read_masks(tmp_path)] == list(range(12))


def test_another_size_or_an_earlier_time_starts_a_new_segment(tmp_path: Path) -> None:
    segments = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    for masked in (item(5), item(6), item(7, scene(7, 10, 10)), item(3)):
        segments.append(masked)
    segments.finish()
    assert [record.frame for record in read_masks(tmp_path)] == [3, 5, 6, 7]
    assert len(lengths(tmp_path)) == 3


def test_writing_the_same_stream_again_overwrites_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        segments = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
        for index in range(4):
            segments.append(item(index))
        segments.finish()
    assert lengths(tmp_path) == [4, 4, 4]


def test_an_open_segment_is_readable_and_finished_by_the_next_start(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from pspnet.masks.frames import Frame, MaskedFrame\n"
        "from pspnet.masks.writer import *\n"
        "segments = SegmentFolder(Path(sys.argv[1]), SegmentSettings(), SegmentHeader(0, 0))\n"
        "for index in range(9):\n"
        "    mask = np.full((24, 33), index, dtype=np.uint8)\n"
        "    segments.append(MaskedFrame(Frame(index, mask, 1e9 + index / 10, 0.0, index / 10), mask, 0.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".pspm.open")
    assert [record.frame for record in read_masks(tmp_path)] == list(range(9))
    with open(left, "ab") as file:
        file.write(b"MASK and a truncated record")
    SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    assert lengths(tmp_path) == [9]
    (whole,) = tmp_path.iterdir()
    assert MaskSegment(whole).complete
    assert all((record.mask == index).all() for index, record in enumerate(read_masks(whole)))


def test_an_open_segment_of_a_running_process_is_not_touched(tmp_path: Path) -> None:
    first = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    first.append(item(0))
    second = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    second.append(item(0))
    first.append(item(1))
    assert first.finish() != second.finish()
    assert sorted(lengths(tmp_path)) == [1, 2]


def test_open_segments_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "20231114T221320250000Z-000000003.pspm.open").write_bytes(SegmentHeader(4, 4).pack())
    (tmp_path / "20231114T221320250000Z-000000004.pspm.open").write_bytes(b"\x89PSP")
    SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    assert [path.name for path in tmp_path.iterdir()] == ["20231114T221320250000Z-000000004.pspm.open.damaged"]


class FullDisk(io.BytesIO):
    """File that writes half of the data and raises while `full`."""

    full = False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.full:
            super().write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_failed_write_leaves_the_segment_unchanged() -> None:
    file = FullDisk()
    writer = SegmentWriter(file, SegmentHeader(24, 33))
    for index in range(6):
        masked = item(index)
        file.full = index == 3
        if file.full:
            with pytest.raises(OSError, match="No space left"):
                writer.append(head_of(masked), masked.mask)
            file.full = False
        writer.append(head_of(masked), masked.mask)
    file.full = True
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    file.full = False
    writer.finish()
    found = MaskSegment(file.getvalue())
    assert found.complete
    assert [record.frame for record in found.records()] == list(range(6))


def test_a_temporarily_full_disk_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    """A file size limit simulates a full disk: one partial write, then none."""
    segments = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for index in range(6):
        masked = item(index)
        if index == 3:
            (path,) = tmp_path.iterdir()
            size = path.stat().st_size
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
                for _ in range(3):
                    with pytest.raises(OSError, match="File too large"):
                        segments.append(masked)
                with pytest.raises(OSError, match="File too large"):
                    segments.finish()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert path.stat().st_size == size
        segments.append(masked)
    segments.finish()
    (path,) = tmp_path.iterdir()
    assert MaskSegment(path).complete
    assert [record.frame for record in read_masks(path)] == list(range(6))


def test_a_segment_that_could_not_start_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    segments = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "_write", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                segments.append(item(0))
            assert list(tmp_path.iterdir()) == []
            assert segments.finish() is None
    segments.append(item(0))
    segments.finish()
    assert lengths(tmp_path) == [1]


def test_a_finished_segment_is_readable(tmp_path: Path) -> None:
    segments = SegmentFolder(tmp_path, SegmentSettings(), TEMPLATE)
    segments.append(item(0))
    path = segments.finish()
    assert path is not None
    assert os.access(path, os.R_OK)
    assert segments.finish() is None
