"""Parsing of sizes, and the timed images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.benchmarking.timed_frames import jpeg, make_images, parse_size, size_text
from pspnet.serving.protocol.request_image import decode_image


def test_sizes_are_height_by_width() -> None:
    assert parse_size("360x480") == (360, 480)
    assert parse_size(" 32 X 999") == (32, 999)
    assert size_text((360, 480)) == "360x480"
    for text in ("", "360", "31x480", "360x-480", "123456x40", "40x40x40"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_size(text)


def test_synthetic_and_given_images(tmp_path: Path) -> None:
    images = make_images((40, 64), batch=2)
    assert (images.shape, images.dtype) == ((2, 40, 64, 3), np.uint8)
    assert (images[0] != images[1]).any()
    assert (make_images((40, 64)) == images[:1]).all()
    Image.new("RGB", (8, 6), (10, 20, 30)).save(tmp_path / "a.png")
    given = make_images((40, 64), batch=2, path=tmp_path / "a.png")
    assert given.shape == (2, 40, 64, 3)
    assert (given == [10, 20, 30]).all()


def test_jpeg_of_a_frame() -> None:
    image = make_images((40, 64))[0]
    found = decode_image(jpeg(image), "image/jpeg")
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < 10
