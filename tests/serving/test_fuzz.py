"""Fuzzing of the protocol: each request is decoded correctly or rejected with a 4xx sentence.

PSPNET_FUZZ_EXAMPLES sets the number of examples per test (400 by default).
"""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pspnet.classes import voc_palette
from pspnet.inference.limits import Limits
from pspnet.inference.prediction import Prediction
from pspnet.serving.protocol.accept import FORMS, choose_answer
from pspnet.serving.protocol.answers import check_answer, encode
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.protocol.request_image import decode_image
from tests.serving.pictures import kinds_of_files, noise, png_of, saved

LIMITS = Limits(request_bytes=1_000_000, pixels=250_000)
TYPES = ("image/jpeg", "image/png", "image/webp", "application/x-npy", "application/octet-stream", "", None)
SEEDS = (*kinds_of_files().values(), saved(noise(20, 30)), saved(noise(20, 30)[..., 0]), png_of(300, 300))

fuzz = settings(
    max_examples=int(os.environ.get("PSPNET_FUZZ_EXAMPLES", "400")),
    deadline=None,  # the machine may be loaded
    suppress_health_check=list(HealthCheck),
    derandomize="PSPNET_FUZZ_EXAMPLES" not in os.environ,
    database=None,
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def assert_decoded_or_rejected(body: bytes, content_type: str | None) -> None:
    try:
        pixels = decode_image(body, content_type, LIMITS)
    except RequestError as error:
        assert_rejection(error, 400, 413, 415)
        return
    height, width = pixels.shape[:2]
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert 0 < height * width <= LIMITS.pixels


def assert_rejection(error: RequestError, *statuses: int) -> None:
    text = str(error)
    assert error.status in statuses
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 400


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Generate a real file with bytes changed, truncated, repeated, removed, or replaced by another file's tail."""
    body = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        offset = draw(st.integers(0, max(0, len(body) - 1)))
        kind = draw(st.integers(0, 6))
        if kind == 0 and body:
            body[offset] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1 and body:
            body[offset] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0xD8, 0xC0)))
        elif kind == 2:
            body[offset : offset + draw(st.integers(1, 40))] = draw(st.binary(max_size=40))
        elif kind == 3:
            del body[offset:]
        elif kind == 4:
            del body[offset : offset + draw(st.integers(1, 200))]
        elif kind == 5:
            body[offset:offset] = body[max(0, offset - 60) : offset]
        else:
            body[offset:] = draw(st.sampled_from(SEEDS))[offset:]
    return bytes(body)


@fuzz
@given(damaged(), st.sampled_from(TYPES))
def test_damaged_files(body: bytes, content_type: str | None) -> None:
    assert_decoded_or_rejected(body, content_type)


@pytest.mark.slow
@fuzz
@given(st.binary(max_size=300), st.one_of(st.sampled_from(TYPES), st.text(max_size=40)))
def test_arbitrary_bytes_and_types(body: bytes, content_type: str | None) -> None:
    assert_decoded_or_rejected(body, content_type)


def with_valid_checksums(body: bytes) -> bytes:
    """Fix the checksums of a damaged PNG, so that the damage reaches the decoder."""
    out, offset = bytearray(body[:8]), 8
    while offset + 12 <= len(body):
        (length,) = struct.unpack(">I", body[offset : offset + 4])
        if length > len(body) - offset - 12:
            break
        chunk = body[offset + 4 : offset + 8 + length]
        out += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        offset += 12 + length
    return bytes(out + body[offset:])


@pytest.mark.slow
@fuzz
@given(damaged())
def test_damaged_png_files_with_valid_checksums(body: bytes) -> None:
    assert_decoded_or_rejected(with_valid_checksums(body), "image/png")


@fuzz
@given(
    st.integers(0, 2**31 - 1) | st.integers(0, 600),
    st.integers(0, 2**31 - 1) | st.integers(0, 600),
    st.sampled_from((1, 2, 4, 8, 16, 3)),
    st.integers(0, 7),
    st.binary(max_size=60),
)
def test_arbitrary_png_headers(width: int, height: int, depth: int, colour: int, pixels: bytes) -> None:
    assert_decoded_or_rejected(png_of(width, height, pixels, depth, colour), "image/png")


@pytest.mark.slow
@fuzz
@given(
    st.sampled_from((1, 2, 3, 0, 255)),
    st.one_of(
        st.text(alphabet="{}()[]',:|u1<f4 descrfortran_orderFalseTrueshape0123456789-", max_size=120),
        st.builds(
            "{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}".format,
            st.sampled_from(("|u1", "<f4", "|O", "|S5", "")),
            st.booleans(),
            st.lists(st.integers(-2, 2**70) | st.integers(0, 9), max_size=5).map(tuple),
        ),
    ),
    st.binary(max_size=300),
)
@example(1, "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 3), }", bytes(12))
def test_arbitrary_npy_headers(version: int, header: str, data: bytes) -> None:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    body = b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data
    assert_decoded_or_rejected(body, "application/x-npy")


ACCEPT_PARTS = st.sampled_from(
    ("*/*", "image/*", "application/*", "image/png", "image/jpeg", "application/json", "application/x-protobuf",
     "application/x-npy", "text/html", ";q=0", ";q=0.5", ";q=1", ";q=1.0001", ";q=", ";palette=true", ";palette",
     ";probabilities=uint8", ";probabilities=", ",", ", ", ";", "=", '"', " ", "\t", "é", "\x00")
)  # fmt: skip
HEADERS = st.one_of(
    st.none(), st.text(max_size=60), st.lists(ACCEPT_PARTS, max_size=12).map("".join),
    st.lists(st.sampled_from(["answer=", "mask", "overlay", "PALETTE", ";", ", ", "id=7"]), max_size=6).map("".join),
)  # fmt: skip


@pytest.mark.slow
@fuzz
@given(HEADERS, HEADERS)
@example("image/png;q=0.5, application/json", None)
def test_arbitrary_headers(accept: str | None, attributes: str | None) -> None:
    try:
        form = choose_answer(accept, attributes)
    except RequestError as error:
        assert_rejection(error, 400, 406)
        return
    assert form in FORMS


@pytest.mark.slow
@fuzz
@given(st.sampled_from(FORMS), st.integers(1, 40), st.integers(1, 40), st.integers(2, 9), st.integers(1_000, 60_000))
def test_answers_fit_or_are_rejected(form: object, height: int, width: int, classes: int, largest: int) -> None:
    rng = np.random.default_rng(height * 41 + width)
    probabilities = rng.random((classes, height, width), dtype=np.float32)
    names = tuple(f"class {index}" for index in range(classes))
    mask = probabilities.argmax(axis=0).astype(np.uint8)
    prediction = Prediction(mask, names, voc_palette(), noise(height, width), probabilities)
    limits = Limits(answer_bytes=largest)
    assert form in FORMS
    try:
        check_answer(form, height, width, classes, limits)  # type: ignore[arg-type]
        body = encode(prediction, form, limits)  # type: ignore[arg-type]
    except RequestError as error:
        assert_rejection(error, 413)
        return
    assert 0 < len(body) <= largest
    if form == FORMS[0]:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), mask)
