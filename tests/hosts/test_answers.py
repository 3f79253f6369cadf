"""Tests of the same requests on every host: inputs, answers, errors."""

from __future__ import annotations

import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks.support.hosts import Host
from pspnet.inference.prediction import Prediction
from pspnet.inference.predictor import Predictor
from pspnet.masks.class_counts import class_counts
from pspnet.serving.protocol.recordio import encode_probabilities
from tests.hosts.exchange import assert_rejected, assert_same_mask, decoded, encoded, npy, opened, picture, post

FRAME = picture(96, 128)
FRAME_PNG = encoded(FRAME)
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture(scope="module")
def expected(predictor: Predictor) -> Prediction:
    """Prediction for the frame in this process."""
    return predictor.predict([FRAME], probabilities=True)[0]


@pytest.mark.slow
def test_ping(host: Host) -> None:
    with host.client() as client:
        assert client.get("/ping").status == 200


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/webp", "application/x-npy", None])
def test_every_image_type_returns_a_mask_of_its_size(
    host: Host, predictor: Predictor, content_type: str | None
) -> None:
    kind = (content_type or "image/png").split("/")[1]
    body = npy(FRAME) if kind == "x-npy" else encoded(FRAME, kind.upper())
    pixels = FRAME if kind in ("x-npy", "png") else decoded(body)
    reply = post(host, body, content_type)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    with opened(reply.body) as image:
        assert image.mode == "L"
    assert_same_mask(decoded(reply.body), predictor.predict([pixels], probabilities=True)[0])


@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "image/*", "text/html, image/png;q=0.5", "application/json;q=0, */*"]
)
def test_mask_is_the_default_answer(host: Host, accept: str | None) -> None:
    reply = post(host, FRAME_PNG, accept=accept)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")


@pytest.mark.parametrize(
    ("accept", "attributes"), [("image/png; palette=true", None), ("image/png", "trace=7, answer=palette")]
)
def test_palette_mask(host: Host, expected: Prediction, accept: str, attributes: str | None) -> None:
    reply = post(host, FRAME_PNG, accept=accept, headers={ATTRIBUTES: attributes} if attributes else None)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    with opened(reply.body) as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))
    assert_same_mask(decoded(reply.body), expected)
    np.testing.assert_array_equal(colours, expected.palette[decoded(reply.body)])


@pytest.mark.parametrize(("accept", "attributes"), [("image/jpeg", None), (None, "answer=overlay")])
def test_overlay(host: Host, expected: Prediction, accept: str | None, attributes: str | None) -> None:
    reply = post(host, FRAME_PNG, accept=accept, headers={ATTRIBUTES: attributes} if attributes else None)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg")
    overlay = decoded(reply.body).astype(int)
    blended = (FRAME.astype(int) + expected.palette[expected.mask]) // 2
    assert overlay.shape == (96, 128, 3)
    assert np.abs(overlay - blended).mean() < 12  # JPEG blurs colours at edges


def test_class_counts(host: Host, expected: Prediction) -> None:
    reply = post(host, FRAME_PNG, accept="application/json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    answer = json.loads(reply.body)
    assert (answer["height"], answer["width"]) == (96, 128)
    mask = decoded(post(host, FRAME_PNG).body)
    counts = class_counts(mask, expected.class_names)
    assert answer["classes"] == [{**entry, "share": entry["fraction"]} for entry in counts]


@pytest.mark.parametrize("accept", ["application/x-protobuf", "application/x-recordio-protobuf"])
def test_probabilities_match_the_built_in_format(host: Host, expected: Prediction, accept: str) -> None:
    reply = post(host, FRAME_PNG, accept=accept)
    assert (reply.status, reply.headers["content-type"]) == (200, accept)
    assert expected.probabilities is not None
    frame, values = encode_probabilities(expected.probabilities), expected.probabilities.tobytes()
    start = frame.index(values)
    end = start + len(values)
    assert reply.body[:start] + reply.body[end:] == frame[:start] + frame[end:]
    found = np.frombuffer(reply.body[start:end], dtype="<f4").reshape(5, 96, 128)
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-5)


def test_arrays(host: Host, expected: Prediction) -> None:
    reply = post(host, FRAME_PNG, accept="application/x-npy")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-npy")
    assert_same_mask(np.load(io.BytesIO(reply.body)), expected)
    reply = post(host, FRAME_PNG, accept="application/x-npz; probabilities=uint8")
    probabilities = np.load(io.BytesIO(reply.body))["probabilities"]
    assert (probabilities.shape, probabilities.dtype) == ((5, 96, 128), np.uint8)
    np.testing.assert_allclose(probabilities / 255, expected.probabilities, atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (7, 200), (360, 480), (1, 1)])
def test_image_sizes(host: Host, predictor: Predictor, size: tuple[int, int]) -> None:
    frame = picture(*size)
    reply = post(host, encoded(frame))
    assert reply.status == 200, reply.body
    assert_same_mask(decoded(reply.body), predictor.predict([frame], probabilities=True)[0])


@pytest.mark.slow
def test_twelve_megapixels(host: Host) -> None:
    reply = post(host, encoded(picture(3000, 4000), "JPEG"), "image/jpeg")
    assert reply.status == 200, reply.body
    mask = decoded(reply.body)
    assert mask.shape == (3000, 4000)
    assert mask.max() < 5


def test_errors_are_single_sentences(host: Host) -> None:
    assert_rejected(post(host, b""), 400, "no body")
    assert_rejected(post(host, FRAME_PNG[:300]), 400, "truncated")
    assert_rejected(post(host, b"not an image" * 50), 400, "not a readable")
    assert_rejected(post(host, encoded(FRAME, "GIF")), 400, "GIF")
    assert_rejected(post(host, npy(FRAME.astype(np.float32)), "application/x-npy"), 400, "NPY")
    assert_rejected(post(host, b"1,2", "text/csv"), 415, "text/csv")
    assert_rejected(post(host, b"\xff\xfe\x89", "application/json"), 415, "application/json")
    assert_rejected(post(host, b"a=b", "application/x-www-form-urlencoded"), 415, "form")
    assert_rejected(post(host, b"--x\r\n", "multipart/form-data; boundary=x"), 415, "multipart")
    assert_rejected(post(host, FRAME_PNG, accept="text/html"), 406, "text/html")
    assert_rejected(post(host, FRAME_PNG, headers={ATTRIBUTES: "answer=poem"}), 400, "poem")
    assert post(host, FRAME_PNG).status == 200


def test_decompression_bomb_is_rejected_before_decoding(host: Host) -> None:
    bomb = bytearray(encoded(np.zeros((8, 8), dtype=np.uint8)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    assert_rejected(post(host, bytes(bomb)), 413, "pixels")
    flat = encoded(np.zeros((5200, 5200), dtype=np.uint8))
    assert len(flat) < 100_000
    assert_rejected(post(host, flat), 413, "5200x5200", "25,000,000")


def test_too_large_probabilities_are_rejected(host: Host) -> None:
    reply = post(host, encoded(picture(1200, 1600), "JPEG"), "image/jpeg", "application/x-recordio-protobuf")
    assert_rejected(reply, 413, "5 classes", "1600x1200", "bytes")


@pytest.mark.slow
def test_concurrent_clients_receive_their_own_masks(host: Host, predictor: Predictor) -> None:
    frames = [picture(64 + 8 * index, 80, seed=index) for index in range(8)]

    def send(index: int) -> np.ndarray:
        return decoded(post(host, encoded(frames[index])).body)

    expected = predictor.predict(frames, probabilities=True)
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(send, [index for index in range(8) for _ in range(5)]))
    for number, mask in enumerate(masks):
        assert_same_mask(mask, expected[number // 5])
