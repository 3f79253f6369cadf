"""Fast JPEG decoder compared with Pillow: equal pixels, and no pixels of a file that Pillow rejects."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.data.io import jpeg
from pspnet.data.io.images import read_image
from pspnet.data.io.jpeg import decode_rgb
from pspnet.errors import DataError

pytest.importorskip("simplejpeg")


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours with edges and some noise, so that every step of a JPEG decoder has an effect."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(width).integers(0, 30, (height, width, 3))
    smooth = np.stack([x * 255 // width, y * 255 // height, (x // 16 + y // 16) % 2 * 200], axis=-1)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def by_pillow(body: bytes) -> np.ndarray | None:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(body)) as image:
            warnings.simplefilter("ignore")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("size", [(75, 50), (33, 25), (17, 9), (3, 64), (1, 1)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("options", [{"quality": 30}, {"quality": 95, "progressive": True}, {"optimize": True}])
def test_pixels_are_pillows(size: tuple[int, int], subsampling: str, options: dict[str, Any]) -> None:
    body = encode(picture(*size), subsampling=subsampling, **options)
    pixels = decode_rgb(body)
    assert pixels is not None
    assert (pixels.dtype, pixels.shape) == (np.uint8, (size[1], size[0], 3))
    np.testing.assert_array_equal(pixels, by_pillow(body))


def test_grey_exif_and_trailing_bytes() -> None:
    turned = picture(40, 30)
    exif = turned.getexif()
    exif[0x0112] = 6
    for body in (encode(turned.convert("L")), encode(turned, exif=exif), encode(turned) + b"\0" * 50):
        pixels = decode_rgb(body)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, by_pillow(body))


def test_other_files_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode_rgb(encode(picture(40, 30).convert("CMYK"))) is None
    assert decode_rgb(b"") is None
    assert decode_rgb(b"\xff\xd8\xff") is None
    assert decode_rgb(b"\x89PNG\r\n\x1a\n") is None
    body = encode(picture(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    assert decode_rgb(body) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_rgb(body) is not None


def test_every_truncation_is_rejected(tmp_path: Path) -> None:
    body = encode(picture(24, 24))
    path = tmp_path / "cut.jpg"
    for length in range(len(body)):
        assert decode_rgb(body[:length]) is None, length
        path.write_bytes(body[:length])
        with pytest.raises(DataError, match=r"cut\.jpg: not a readable image \(.*\. Replace or remove the file"):
            read_image(path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_damaged_files_match_pillow(options: dict[str, Any]) -> None:
    rng = random.Random(7)
    whole = encode(picture(64, 48), quality=90, **options)
    seen = {"decoded": 0, "left": 0}
    for _ in range(300):
        body = bytearray(whole)
        place = rng.randrange(2, len(body))
        damage = rng.choice(["flip", "zeros", "gap"])
        if damage == "flip":
            body[place] ^= 1 << rng.randrange(8)
        elif damage == "zeros":
            body[place : place + 40] = bytes(len(body[place : place + 40]))
        else:
            del body[place : place + rng.randrange(1, 200)]
        pixels = decode_rgb(bytes(body))
        seen["left" if pixels is None else "decoded"] += 1
        if pixels is not None:
            np.testing.assert_array_equal(pixels, by_pillow(bytes(body)))
    assert min(seen.values()) > 0


def test_pillow_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(picture(40, 30)))
    fast = read_image(path)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert decode_rgb(path.read_bytes()) is None
    np.testing.assert_array_equal(read_image(path), fast)


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (50, 40)).save(stream, "JPEG")
    seen = []

    def check(height: int, width: int) -> None:
        seen.append((height, width))
        raise DataError("too large")

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DataError, match="too large"):
        decode_rgb(stream.getvalue(), check)
    assert seen == [(40, 50)]
