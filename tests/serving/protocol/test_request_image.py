"""Tests of decoding request bodies, and of the error for every body that cannot be decoded."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.data.io.images import read_image
from pspnet.inference.limits import Limits
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.protocol.request_image import decode_image
from tests.serving.pictures import encoded, kinds_of_files, noise, npy_header, png_of, saved

PIXELS = noise(5, 7)
FILES = kinds_of_files()


def refused(body: bytes, content_type: str | None = "image/png", limits: Limits | None = None) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        decode_image(body, content_type, limits or Limits())
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 300
    return caught.value.status, text


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_decoded_pixels_equal_those_of_training(name: str, tmp_path: Path) -> None:
    path = tmp_path / "frame"
    path.write_bytes(FILES[name])
    decoded = decode_image(FILES[name], f"image/{name.split()[0]}")
    assert decoded.shape == (48, 64, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, read_image(path))
    assert 60 < decoded.mean() < 200  # neither white, black nor inverted


def test_inverted_cmyk_matches_its_original() -> None:
    original = Image.new("RGB", (32, 16), (200, 100, 50))
    decoded = decode_image(encoded(original.convert("CMYK"), "JPEG", quality=95), "image/jpeg")
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 4


def test_16_bit_values_are_truncated_to_8_bits() -> None:
    words = np.array([[0, 255, 256], [511, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(words)), "image/png")
    np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1], [1, 128, 255]])
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_first_picture_of_several_is_decoded() -> None:
    for name in ("png animated", "webp animated", "jpeg of several"):
        plain = decode_image(FILES["png"], None).astype(int)
        assert np.abs(decode_image(FILES[name], None) - plain).mean() < 8, name


def test_alpha_is_dropped_without_blending() -> None:
    image = Image.fromarray(PIXELS)
    image.putalpha(0)
    np.testing.assert_array_equal(decode_image(encoded(image), "image/png"), PIXELS)


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "IMAGE/JPEG; q=1", "image/jpg", "image/png", "image/webp", "application/x-image",
     "application/octet-stream", "binary/octet-stream", "", None, " image/png ;charset=binary"],
)  # fmt: skip
def test_any_image_type_accepts_any_image(content_type: str | None) -> None:
    for kind in ("PNG", "WEBP"):
        decoded = decode_image(encoded(PIXELS, kind, lossless=True), content_type)
        np.testing.assert_array_equal(decoded, PIXELS)


@pytest.mark.parametrize("content_type", ["application/x-npy", "application/octet-stream", "application/x-image", ""])
def test_npy_arrays_are_decoded(content_type: str) -> None:
    for array in (PIXELS, np.asfortranarray(PIXELS), PIXELS[:, ::-1]):
        np.testing.assert_array_equal(decode_image(saved(array), content_type), array)
    grey = decode_image(saved(PIXELS[..., 0]), content_type)
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_npy_versions_and_spacing() -> None:
    text = "{'descr':'|u1','fortran_order':False,'shape':(1,2,3)}\n"
    for version in (1, 2, 3):
        decoded = decode_image(npy_header(text, bytes(range(6)), version), "application/x-npy")
        np.testing.assert_array_equal(decoded, [[[0, 1, 2], [3, 4, 5]]])


# --- rejection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"x", "text/csv", 415, "The content type is 'text/csv'; send image/jpeg, image/png, image/webp or"),
        (b"x", "application/json", 415, "The content type is 'application/json'"),
        (b"", "image/png", 400, "The request has no body; send image/jpeg"),
        (b"", None, 400, "The request has no body"),
        (b"no image", "image/png", 400, "The body is not a readable JPEG, PNG or WebP image"),
        (b"no image", None, 400, "The body is not a readable JPEG, PNG or WebP image"),
        (encoded(PIXELS)[:-30], "image/png", 400, "it may be damaged or truncated"),
        (FILES["jpeg"][:-100], "image/jpeg", 400, "it may be damaged or truncated"),
        (FILES["webp"][:-100], "image/webp", 400, "it may be damaged or truncated"),
        (FILES["jpeg"][:3], "image/jpeg", 400, "not a readable"),
        (png_of(10, 10), "image/png", 400, "not a readable"),
        (png_of(0, 10), "image/png", 400, "not a readable"),
        (encoded(Image.new("P", (4, 4)), "GIF"), "image/png", 400, "The image is a GIF file; send image/jpeg"),
        (encoded(PIXELS, "TIFF"), "application/x-image", 400, "The image is a TIFF file"),
        (encoded(PIXELS, "BMP"), "", 400, "The image is a BMP file"),
        (saved(PIXELS), "image/png", 400, "not a readable"),
        (encoded(PIXELS), "application/x-npy", 400, "The NPY body is not an NPY file: it does not start with"),
    ],
)
def test_unreadable_requests_are_rejected(body: bytes, content_type: str | None, status: int, text: str) -> None:
    found = refused(body, content_type)
    assert found[0] == status
    assert text in found[1]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (saved(np.zeros((4, 4, 3), np.float32)), "is of type '<f4'; expected uint8"),
        (saved(np.zeros((4, 4, 3), bool)), "is of type '|b1'; expected uint8"),
        (saved(np.zeros((3, 4, 4), np.uint8)), "is of shape (3, 4, 4); expected (H, W, 3) RGB or (H, W) grey"),
        (saved(np.zeros((4, 4, 4), np.uint8)), "is of shape (4, 4, 4)"),
        (saved(np.zeros((1, 4, 4, 3), np.uint8)), "is of shape (1, 4, 4, 3)"),
        (saved(np.zeros((0, 4, 3), np.uint8)), "is of shape (0, 4, 3)"),
        (saved(np.zeros(5, np.uint8)), "is of shape (5,)"),
        (saved(np.uint8(3)), "is of shape ()"),
        (saved(np.zeros((4, 4, 3), np.uint8))[:-1], "of shape (4, 4, 3) has 47 bytes of data; expected 48"),
        (saved(np.zeros((4, 4, 3), np.uint8)) + b"x", "has 49 bytes of data; expected 48"),
        (b"\x93NUMPY", "is not an NPY file"),
        (b"\x93NUMPY\x09\x00\x10\x00" + bytes(64), "is not an NPY file"),
        (npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }", b"x"), "is of type '|O'"),
        (npy_header("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1, 1), }", b"x"), "is of type"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1), }", b"x"), "is of shape (-1, 1)"),
        (npy_header("__import__('os').system('true')", b"x"), "header that cannot be read"),
        (npy_header("(" * 200, b"x"), "header that cannot be read"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (9" + "9" * 150 + ",1)}"), "is of shape (999"),
    ],
)  # fmt: skip
def test_invalid_npy_bodies_are_rejected(body: bytes, text: str) -> None:
    status, sentence = refused(body, "application/x-npy")
    assert status == 400
    assert sentence.startswith("The NPY body ")
    assert text in sentence


def test_huge_npy_shape_allocates_nothing() -> None:
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (30000, 30000, 3), }"
    tracemalloc.start()
    try:
        assert "expected 2,700,000,000" in refused(npy_header(shape, b"x" * 100), "application/x-npy")[1]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("width", "height"), [(6000, 6000), (1, 65_501), (65_501, 1), (2**31 - 1, 2**31 - 1), (1_000_000, 1)]
)
def test_decompression_bombs_are_rejected_by_their_header(width: int, height: int) -> None:
    status, text = refused(png_of(width, height))
    assert status == 413
    assert "pixels" in text


def test_padded_pixels_are_limited() -> None:
    limits = Limits(pixels=64 * 64)
    assert decode_image(encoded(noise(64, 64)), None, limits).shape == (64, 64, 3)
    assert refused(encoded(noise(64, 65)), None, limits) == (
        413, "The image has 65x64 pixels; this endpoint accepts at most 4,096 pixels and 65,500 per side.",
    )  # fmt: skip
    assert refused(saved(noise(64, 65)), None, limits)[0] == 413
    assert decode_image(encoded(noise(1, 128)), None, limits).shape == (1, 128, 3)
    assert refused(encoded(noise(1, 129)), None, limits)[0] == 413  # 32 rows of 129 once it is padded


def test_body_size_is_limited() -> None:
    body = encoded(noise(64, 64))
    assert refused(body, None, Limits(request_bytes=1000)) == (
        413, f"The body has {len(body):,} bytes; this endpoint accepts at most 1,000.",
    )  # fmt: skip


@pytest.mark.slow
def test_compressed_text_chunk_bomb_is_rejected() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "a" * 80_000_000, zip=True)
    body = encoded(noise(8, 8), pnginfo=info)
    assert len(body) < 200_000
    assert refused(body)[0] == 400


def test_npy_frame_decodes_without_copying_the_body() -> None:
    body = saved(noise(480, 640))
    tracemalloc.start()
    try:
        decode_image(body, "application/x-npy")
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


def test_memory_error_while_decoding_is_not_reported_as_a_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pspnet.serving.protocol.request_image.to_rgb", fail)
    with pytest.raises(MemoryError):
        decode_image(encoded(PIXELS), None)


def test_only_allowed_decoders_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = Image.open

    def spy(file: io.BytesIO, formats: object = None) -> Image.Image:
        opened.append(formats)
        return real(file, formats=formats)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", spy)
    decode_image(encoded(PIXELS), None)
    assert opened == [("JPEG", "PNG", "WEBP")]
