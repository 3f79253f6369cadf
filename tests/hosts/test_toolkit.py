"""The handlers in SageMaker's own inference toolkit under TorchServe, as the endpoint's container runs them."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks.hosts import Host
from pspnet.serving.predictor import Predictor
from tests.hosts.exchange import assert_refused, decoded, encoded, picture, post

FRAME = picture(96, 128)
FRAME_PNG = encoded(FRAME)


def test_it_is_alive(toolkit: Host) -> None:
    with toolkit.client() as client:
        assert client.get("/ping").status == 200


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_an_image_becomes_a_mask_of_its_size(toolkit: Host, image_format: str) -> None:
    reply = post(toolkit, encoded(FRAME, image_format), f"image/{image_format.lower()}")
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    mask = decoded(reply.body)
    assert (mask.shape, mask.dtype) == ((96, 128), np.uint8)
    assert mask.max() < 5


def test_counts_in_json(toolkit: Host) -> None:
    reply = post(toolkit, FRAME_PNG, accept="application/json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    mask = decoded(post(toolkit, FRAME_PNG).body)
    assert sum(entry["pixels"] for entry in json.loads(reply.body)["classes"]) == mask.size


@pytest.mark.parametrize("accept", [None, "*/*", "image/*", "text/html, image/png;q=0.5"])
def test_a_mask_where_nothing_else_is_asked_for(toolkit: Host, accept: str | None) -> None:
    assert post(toolkit, FRAME_PNG, accept=accept).headers["content-type"] == "image/png"


def test_bad_requests_get_one_sentence(toolkit: Host) -> None:
    assert_refused(post(toolkit, b""), 400, "no body")
    assert_refused(post(toolkit, FRAME_PNG[:300]), 400, "cut short")
    assert_refused(post(toolkit, b"not an image" * 50), 400, "no readable")
    assert_refused(post(toolkit, encoded(FRAME, "GIF")), 400, "GIF")
    assert_refused(post(toolkit, encoded(FRAME[:8, :8])), 400, "32")
    assert_refused(post(toolkit, b"1,2", "text/csv"), 415, "text/csv")
    assert_refused(post(toolkit, b"a=b", "application/x-www-form-urlencoded"), 415, "form")
    assert_refused(post(toolkit, FRAME_PNG, accept="text/html"), 406, "text/html")
    assert post(toolkit, FRAME_PNG).status == 200


def test_many_clients_at_once_get_each_their_own_mask(toolkit: Host, predictor: Predictor) -> None:
    frames = [picture(64 + 8 * index, 80, seed=index) for index in range(8)]

    def ask(index: int) -> np.ndarray:
        return decoded(post(toolkit, encoded(frames[index])).body)

    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(ask, [index for index in range(8) for _ in range(5)]))
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, predictor(frames[number // 5]))


def test_a_worker_killed_under_load_comes_back(toolkit: Host) -> None:
    before = toolkit.workers()
    assert len(before) == 2
    statuses: list[int] = []

    def load() -> None:
        for _ in range(40):
            statuses.append(post(toolkit, FRAME_PNG).status)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(load)
        time.sleep(0.3)
        os.kill(before[0], signal.SIGKILL)
    # Only what the killed worker had in hand may fail: one request, or one more that was on its way.
    assert len(statuses) == 160
    assert statuses.count(200) >= 158
    deadline = time.monotonic() + 90
    while len(toolkit.workers()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    after = toolkit.workers()
    assert len(after) == 2
    assert before[0] not in after
    assert post(toolkit, FRAME_PNG).status == 200
