"""Segment bytes as specified in docs/mask_format.md: fixed examples and round trips."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from pspnet.classes import CAMVID_CLASSES, palette_for
from pspnet.masks.codec import MaskFileError
from pspnet.masks.segment import (
    INDEX_ENTRY,
    RecordHead,
    SegmentHeader,
    mask_name,
    pack_index,
    read_name,
    unpack_header,
    unpack_index,
    unpack_record,
)


def test_header_bytes() -> None:
    header = SegmentHeader(360, 480, CAMVID_CLASSES, palette_for(CAMVID_CLASSES), "runs", "Straße.mkv")
    data = header.pack()
    assert data[:8] == b"\x89PSPM\r\n\x1a"
    assert struct.unpack("<HHII", data[8:20]) == (1, 11, 480, 360)
    length, crc = struct.unpack("<II", data[20:28])
    assert len(data) == 28 + length
    assert zlib.crc32(data[:24] + data[28:]) == crc
    back = unpack_header(data + b"more", "x")
    assert (back.height, back.width, back.class_names, back.encoding) == (360, 480, CAMVID_CLASSES, "runs")
    assert back.source == "Straße.mkv"
    assert back.palette is not None
    assert np.array_equal(back.palette[:11], palette_for(CAMVID_CLASSES)[:11])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"\x89PNG" + data[4:], "not a mask segment"),
        (lambda data: data[:8] + b"\x07" + data[9:], "has format version 7"),
        (lambda data: data[:20], "ends within its header"),
        (lambda data: data[:-1], "damaged or truncated"),
        (lambda data: data[:-3] + b"###", "damaged or truncated"),
        (lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:], "declares 4294967295x4 pixels"),
    ],
)
def test_a_damaged_header_raises(damage: object, message: str) -> None:
    with pytest.raises(MaskFileError, match=message):
        unpack_header(damage(SegmentHeader(4, 4, ("a",)).pack()), "x")  # type: ignore[operator]


def test_record_bytes() -> None:
    head = RecordHead(7, 1_700_000_000.5, 0.25, 0.125, {"fragment": "9"}, 3, True)
    data = head.pack(b"payload")
    assert data[:4] == b"MASK"
    assert struct.unpack("<BBHIQddf", data[4:40]) == (3, 1, 17, 7, 7, 1_700_000_000.5, 0.25, 0.125)
    assert struct.unpack("<I", data[40:44])[0] == zlib.crc32(data[:40] + data[44:])
    assert unpack_record(b"xx" + data, 2) == (head, b"payload", 2 + len(data))
    for place in range(len(data)):
        assert unpack_record(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) is None
        assert unpack_record(data[:place]) is None


def test_repeated_labels_take_no_bytes() -> None:
    head = RecordHead(7, 1.0, 0.0, 0.0, None, 4, False)
    assert len(head.pack(b"")) == 44
    found = unpack_record(head.pack(b""))
    assert found is not None
    assert found[0] == head


def test_labels_that_are_too_long_raise() -> None:
    with pytest.raises(ValueError, match="at most 65,535"):
        RecordHead(0, 0.0, 0.0, labels={"a": "b" * 70_000}).pack(b"")


def test_index_bytes() -> None:
    entries = np.array([(5, 1.5, 0.5, 100, 20, 0), (6, 1.6, 0.6, 120, 30, 0)], dtype=INDEX_ENTRY)
    data = pack_index(entries, 150)
    index, trailer = data[:-20], data[-20:]
    assert struct.unpack("<QI8s", trailer) == (150, len(index), b"PSPMEND\n")
    marker, count, length, crc = struct.unpack("<4sIII", index[:16])
    assert (marker, count, length) == (b"INDX", 2, len(index) - 16)
    assert crc == zlib.crc32(index[:12] + index[16:])
    columns = zlib.decompress(index[16:], -15)
    assert struct.unpack("<2Q2d2d2Q2I2I", columns) == (5, 6, 1.5, 1.6, 0.5, 0.6, 100, 120, 20, 30, 0, 0)
    back = unpack_index(index)
    assert back is not None
    assert back.tolist() == entries.tolist()
    assert unpack_index(index[:-1]) is None
    assert unpack_index(index[:20] + b"#" + index[21:]) is None


def test_names_sort_by_time_and_hold_the_range() -> None:
    first, last = RecordHead(3, 1_700_000_000.25, 0.0), RecordHead(120, 1_700_000_009.5, 9.25)
    name = mask_name(first, last, ".pspm")
    assert name == "20231114T221320250000Z-20231114T221329500000Z-000000003-000000120.pspm"
    parsed = read_name(name)
    assert parsed is not None
    assert (parsed.captured, parsed.frame, parsed.last_captured, parsed.last_frame) == (
        1_700_000_000.25,
        3,
        1_700_000_009.5,
        120,
    )
    assert mask_name(last, None, ".png") == "20231114T221329500000Z-000000120.png"
    assert name < mask_name(last, last, ".pspm")
    again = read_name(mask_name(first, last, ".pspm", 2))
    assert again == parsed
    opened = read_name(mask_name(first, None, ".pspm.open"))
    assert opened is not None
    assert opened.last_frame is None
    assert read_name("frame.png") is None
    assert read_name("20231399T221320250000Z-000000003.png") is None


@pytest.mark.parametrize("time", [1e20, float("inf"), float("nan")])
def test_a_time_outside_the_calendar_raises(time: float) -> None:
    with pytest.raises(ValueError, match=r"seconds since the epoch|convert"):
        mask_name(RecordHead(0, time, 0.0), None, ".png")
