"""Tests of encoding answers and of their size limits."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import voc_palette
from pspnet.inference.limits import DEFAULT_LIMITS, Limits
from pspnet.inference.prediction import Prediction
from pspnet.masks.png import encode_mask
from pspnet.serving.protocol.accept import FORMS, AnswerForm, choose_answer
from pspnet.serving.protocol.answers import check_answer, encode
from pspnet.serving.protocol.request_error import RequestError
from tests.serving.pictures import noise

NAMES = ("sky", "road", "car", "tree")
MASK = np.array([[0, 1, 1], [2, 2, 2]], dtype=np.uint8)


def prediction(height: int = 20, width: int = 30) -> Prediction:
    probabilities = np.random.default_rng(5).random((4, height, width), dtype=np.float32)
    probabilities /= probabilities.sum(axis=0)
    mask = probabilities.argmax(axis=0).astype(np.uint8)
    return Prediction(mask, NAMES, voc_palette(), noise(height, width), probabilities)


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


# --- masks ------------------------------------------------------------------------------------------------------------


def test_mask_is_an_8_bit_png_of_class_ids() -> None:
    image = opened(encode_mask(MASK))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (3, 2))
    np.testing.assert_array_equal(np.asarray(image), MASK)


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (7, 13), (360, 480)])
def test_masks_round_trip(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, shape, dtype=np.uint8)
    for mask in (noisy, noisy // 64, np.full(shape, 255, np.uint8), noisy[::-1, ::-1], np.asfortranarray(noisy)):
        image = opened(encode_mask(mask))
        image.load()
        np.testing.assert_array_equal(np.asarray(image), mask)


def test_masks_are_small() -> None:
    mask = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((120, 120), np.uint8))
    assert len(encode_mask(mask)) < 2_000


def test_palette_png_stores_ids_as_indices() -> None:
    found = prediction()
    image = opened(encode(found, choose_answer("image/png;palette=true")))
    assert (image.format, image.mode) == ("PNG", "P")
    np.testing.assert_array_equal(np.asarray(image), found.mask)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[found.mask])


def test_arrays_contain_the_mask() -> None:
    found = prediction()
    mask = np.load(io.BytesIO(encode(found, choose_answer("application/x-npy"))), allow_pickle=False)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, found.mask)
    with np.load(io.BytesIO(encode(found, choose_answer("application/x-npz"))), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["mask"], found.mask)


def test_overlay_blends_image_and_colours() -> None:
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 1
    grey = np.full((32, 48, 3), 200, np.uint8)
    image = opened(encode(Prediction(mask, NAMES, voc_palette(), grey), choose_answer("image/jpeg")))
    assert (image.format, image.size) == ("JPEG", (48, 32))
    pixels = np.asarray(image).astype(int)
    assert np.abs(pixels[:, :16] - 100).max() <= 3  # class 0 is black
    assert np.abs(pixels[:, 32:] - (164, 100, 100)).max() <= 4  # class 1 is (128, 0, 0)


def test_json_counts_pixels_per_class() -> None:
    body = encode(Prediction(MASK, NAMES, voc_palette(), noise(2, 3)), choose_answer("application/json"))
    assert json.loads(body) == {
        "height": 2,
        "width": 3,
        "classes": [
            {"id": 0, "name": "sky", "pixels": 1, "fraction": 0.166667, "share": 0.166667},
            {"id": 1, "name": "road", "pixels": 2, "fraction": 0.333333, "share": 0.333333},
            {"id": 2, "name": "car", "pixels": 3, "fraction": 0.5, "share": 0.5},
        ],
    }


# --- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("float16", 3e-4), ("uint8", 0.5 / 255 + 1e-6)])
def test_arrays_contain_probabilities_in_the_requested_dtype(dtype: str, error: float) -> None:
    found = prediction()
    plain = np.load(
        io.BytesIO(encode(found, choose_answer(f"application/x-npy; probabilities={dtype}"))), allow_pickle=False
    )
    body = encode(found, choose_answer(f"application/x-npz; probabilities={dtype}"))
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], plain)
    assert (plain.dtype, plain.shape) == (np.dtype(dtype), (4, 20, 30))
    scale = 255 if dtype == "uint8" else 1
    assert found.probabilities is not None
    assert np.abs(plain.astype(np.float64) / scale - found.probabilities).max() <= error


def test_both_protobuf_types_return_the_same_frame() -> None:
    found = prediction()
    body = encode(found, choose_answer("application/x-protobuf"))
    assert body == encode(found, choose_answer("application/x-recordio-protobuf"))
    assert body[:4] == b"\x0a\x23\xd7\xce"


def test_missing_probabilities_are_rejected() -> None:
    with pytest.raises(RequestError, match="No probabilities were computed") as caught:
        encode(replace(prediction(), probabilities=None), choose_answer("application/x-protobuf"))
    assert caught.value.status == 406


# --- size limits ----------------------------------------------------------------------------------------------------


def test_probabilities_of_21_classes_are_limited_before_prediction() -> None:
    form = choose_answer("application/x-protobuf")
    check_answer(form, 480, 600, 21, DEFAULT_LIMITS)  # 24.2 MB
    with pytest.raises(RequestError) as caught:
        check_answer(form, 480, 640, 21, DEFAULT_LIMITS)
    assert caught.value.status == 413
    assert str(caught.value) == (
        "Probabilities of 21 classes for 640x480 pixels take 25,804,928 bytes as float32; this endpoint allows "
        "at most 25,000,000. Send at most about 545x545 pixels, or accept application/x-npz; probabilities=uint8, or "
        "image/png for the mask alone."
    )
    check_answer(choose_answer("application/x-npy;probabilities=uint8"), 960, 1200, 21, DEFAULT_LIMITS)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_encoded_size_is_limited(form: AnswerForm) -> None:
    found = prediction(60, 80)
    size = len(encode(found, form))
    check_answer(form, 60, 80, 4, Limits(answer_bytes=size + 128))
    assert encode(found, form, Limits(answer_bytes=size)) == encode(found, form)
    with pytest.raises(RequestError, match=rf"has {size:,} bytes; .* at most {size - 1:,}\. Send a smaller") as caught:
        encode(found, form, Limits(answer_bytes=size - 1))
    assert caught.value.status == 413


def test_compressed_probabilities_are_limited_before_prediction() -> None:
    form = choose_answer("application/x-npz; probabilities=uint8")
    limits = Limits(answer_bytes=1_000)
    check_answer(form, 30, 32, 4, limits)
    with pytest.raises(
        RequestError, match=r"take 16,128 bytes as uint8; .* at most 4,000\. Send .* 31x31 pixels, or accept image/png"
    ):
        check_answer(form, 40, 100, 4, limits)


def test_small_answers_are_not_limited_before_prediction() -> None:
    for accept in ("image/png", "application/json", "image/jpeg", "application/x-npy"):
        check_answer(choose_answer(accept), 5000, 5000, 254, Limits(answer_bytes=1_000))
