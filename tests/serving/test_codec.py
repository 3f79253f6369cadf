"""Bytes to images, masks to bytes, and the sentence for every request that cannot be answered."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from pspnet.serving.codec import Prediction, RequestError, choose_answer, decode_image, encode, encode_mask

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
MASK = np.array([[0, 1, 1], [2, 2, 2]], dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_png_bytes_become_their_pixels() -> None:
    decoded = decode_image(encoded(Image.fromarray(PIXELS), "PNG"), "image/png")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, PIXELS)


@pytest.mark.parametrize("content_type", ["image/jpeg", "IMAGE/JPEG; q=1", "image/jpg", "image/png"])
def test_jpeg_bytes_are_read_whatever_image_type_is_named(content_type: str) -> None:
    body = encoded(Image.new("RGB", (32, 16), (200, 100, 50)), "JPEG")
    decoded = decode_image(body, content_type)
    assert decoded.shape == (16, 32, 3)
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 3


def test_exif_orientation_is_not_applied() -> None:
    image = Image.new("RGB", (32, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees for showing
    assert decode_image(encoded(image, "JPEG", exif=exif), "image/jpeg").shape == (16, 32, 3)


GIF = encoded(Image.new("P", (4, 4)), "GIF")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"x", "text/csv", 415, "The content type is 'text/csv'; send image/jpeg or image/png."),
        (b"x", "", 415, "The content type is missing"),
        (b"", "image/png", 400, "The request has no body"),
        (b"no image", "image/png", 400, "The body is no readable JPEG or PNG image"),
        (encoded(Image.fromarray(PIXELS), "PNG")[:-30], "image/png", 400, "it may be damaged or cut short"),
        (GIF, "image/png", 400, "The image is a GIF file; send a JPEG or PNG image."),
    ],
)
def test_requests_that_cannot_be_read(body: bytes, content_type: str, status: int, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_image(body, content_type)
    assert caught.value.status == status
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = encoded(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(RequestError, match="too many pixels") as caught:
        decode_image(body, "image/png")
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        (None, "image/png"),
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*;q=0.8", "image/png"),
        ("Application/JSON", "application/json"),
        ("text/html, application/json;q=0.9, */*", "application/json"),
    ],
)
def test_the_answer_follows_the_accept_header(accept: str | None, answer: str) -> None:
    assert choose_answer(accept) == answer


def test_an_answer_that_is_not_offered() -> None:
    with pytest.raises(RequestError, match=r"'text/html'; accept image/png or application/json") as caught:
        choose_answer("text/html")
    assert caught.value.status == 406


def test_a_mask_becomes_an_8_bit_png_of_class_ids() -> None:
    image = Image.open(io.BytesIO(encode_mask(MASK)))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (3, 2))
    np.testing.assert_array_equal(np.asarray(image), MASK)


def test_json_counts_the_classes_in_the_mask() -> None:
    body = encode(Prediction(MASK, ("sky", "road", "car", "tree")), "application/json")
    assert json.loads(body) == {
        "height": 2,
        "width": 3,
        "classes": [
            {"id": 0, "name": "sky", "pixels": 1, "share": 1 / 6},
            {"id": 1, "name": "road", "pixels": 2, "share": 2 / 6},
            {"id": 2, "name": "car", "pixels": 3, "share": 0.5},
        ],
    }
