"""Fast palette PNG reader compared with Pillow: equal indices, and none of a file that Pillow rejects."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import voc_palette
from pspnet.data.io import palette_png as reader
from pspnet.data.io.images import encode_palette_png, read_annotation
from pspnet.data.io.palette_png import decode_indices


@pytest.fixture(params=["libdeflate", "zlib"], autouse=True)
def _inflated_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(reader, "deflate", None)
    else:
        pytest.importorskip("deflate")


def mask_of(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)


def palette_png(mask: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    encode_palette_png(mask, voc_palette()).save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def by_hand(mask: np.ndarray, rows: bytes, extra: bytes = b"", interlaced: int = 0) -> bytes:
    height, width = mask.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, interlaced)
    packed = zlib.compress(rows)
    middle = len(packed) // 2
    data = chunk(b"IDAT", packed[:middle]) + chunk(b"IDAT", packed[middle:])
    palette = chunk(b"PLTE", voc_palette().tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + palette + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (64, 48), (257, 5)])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"transparency": 0}, {"compress_level": 0}])
def test_indices_are_the_stored_ones(size: tuple[int, int], options: dict[str, Any]) -> None:
    mask = mask_of(*size)
    indices = decode_indices(palette_png(mask, **options))
    assert indices is not None
    assert indices.dtype == np.uint8
    assert indices.flags.c_contiguous
    np.testing.assert_array_equal(indices, mask)


def test_several_data_chunks_and_unknown_ones() -> None:
    mask = mask_of(9, 6)
    rows = b"".join(b"\0" + row.tobytes() for row in mask)
    text = chunk(b"tEXt", b"Author\0nobody")
    np.testing.assert_array_equal(decode_indices(by_hand(mask, rows, text)), mask)
    assert decode_indices(by_hand(mask, rows, chunk(b"acTL", bytes(8)))) is None  # animated
    assert decode_indices(by_hand(mask, rows, chunk(b"ABCD", b""))) is None  # critical and unknown


def test_other_files_are_left_to_pillow(tmp_path: Path) -> None:
    mask = mask_of(8, 4)
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    narrow = palette_png(mask % 4, bits=2)
    up = b"".join(b"\2" + row.tobytes() for row in np.diff(mask, axis=0, prepend=np.zeros((1, 8), np.uint8)))
    for body in (b"", b"\x89PNG\r\n\x1a\n", stream.getvalue(), narrow, by_hand(mask, up), b"\xff\xd8\xff"):
        assert decode_indices(body) is None
    for body, expected in ((stream.getvalue(), mask), (narrow, mask % 4), (by_hand(mask, up), mask)):
        (tmp_path / "a.png").write_bytes(body)
        np.testing.assert_array_equal(read_annotation(tmp_path / "a.png"), expected)
    assert decode_indices(by_hand(mask, bytes(36), interlaced=1)) is None


def test_too_little_and_too_much_data_is_left_to_pillow() -> None:
    mask = mask_of(8, 4)
    rows = b"".join(b"\0" + row.tobytes() for row in mask)
    assert decode_indices(by_hand(mask, rows)) is not None
    assert decode_indices(by_hand(mask, rows[:-1])) is None
    assert decode_indices(by_hand(mask, rows + b"\0")) is None


def test_many_pixels_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    assert decode_indices(palette_png(mask_of(8, 4))) is None
    assert decode_indices(palette_png(mask_of(31, 1))) is not None


def test_every_truncation_and_every_wrong_byte_is_left_to_pillow() -> None:
    mask = np.arange(48, dtype=np.uint8).reshape(6, 8)
    body = palette_png(mask)
    for length in range(len(body)):
        assert decode_indices(body[:length]) is None, length
    rng = random.Random(0)
    for place in range(len(body)):
        wrong = bytearray(body)
        wrong[place] ^= 1 << rng.randrange(8)
        assert decode_indices(bytes(wrong)) is None, place
