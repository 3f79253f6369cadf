"""Tests of `pspnet serve` end to end: shared socket, restarts and graceful shutdown."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.support import hosts
from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.config.schema import Config
from pspnet.errors import ConfigError
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.serving.processes.supervisor import open_listener
from pspnet.serving.protocol.accept import FORMS, AnswerForm
from pspnet.serving.protocol.answers import encode
from tests.serving.pictures import encoded, noise

FRAME = encoded(noise(96, 128))
LIMITS = Limits(large_images="scale")  # an image of 12 million pixels takes minutes in tiles
SMALL = ("--warmup_size", "32x32", "--threads", "1")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = Config(num_classes=4, data="x", width=4, use_pretrained_model=False)
    torch.manual_seed(1)
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {})
    return folder


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Iterator[Predictor]:
    """Predictor with the thread count of the workers: another count changes the order of float additions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Predictor.load(model_dir, "cpu", LIMITS)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    """Server with two workers."""
    folder, environment = tmp_path_factory.mktemp("pair"), {"PSPNET_LARGE_IMAGES": LIMITS.large_images}
    with hosts.serve(model_dir, folder, workers=2, arguments=SMALL, environment=environment) as host:
        host.wait_ready(FRAME, "image/png")
        yield host


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def metric(host: hosts.Host, name: str) -> float:
    with host.client() as client:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").body.decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.media_type}-{form.kind}-{form.dtype}")
def test_answers_are_byte_identical_to_the_predictor(pair: hosts.Host, predictor: Predictor, form: AnswerForm) -> None:
    image = noise(33, 47, 9)
    accept = form.media_type
    if form.needs_probabilities and accept in ("application/x-npy", "application/x-npz"):
        accept += f"; probabilities={form.dtype}"
    accept += "; palette=true" if form.kind == "palette" else ""
    with pair.client() as client:
        reply = client.post(encoded(image), "image/png", accept)
    assert (reply.status, reply.headers["content-type"]) == (200, form.media_type)
    assert reply.body == encode(predictor.predict([image], form.needs_probabilities)[0], form)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(32, 32), (480, 360), (1, 700), (4000, 3000)])
def test_masks_of_all_sizes(pair: hosts.Host, predictor: Predictor, width: int, height: int) -> None:
    image = np.full((height, width, 3), 90, np.uint8)
    image[: height // 2, width // 3 :] = (200, 30, 60)
    with pair.client(seconds=300) as client:
        reply = client.post(encoded(image, compress_level=1), "image/png")
    assert reply.status == 200, reply.body
    assert reply.body == encode(predictor.predict([image])[0], FORMS[0])


@pytest.mark.slow
def test_concurrent_clients_receive_their_own_masks(pair: hosts.Host, predictor: Predictor) -> None:
    wrong: list[object] = []

    def send(seed: int, expected: bytes, body: bytes) -> None:
        with pair.client() as client:
            for _ in range(6):
                reply = client.post(body, "image/png")
                if reply.body != expected:
                    wrong.append((seed, reply.status))

    clients = []
    for seed in range(6):
        image = noise(64, 64 + 16 * (seed % 2), seed)
        expected = encode(predictor.predict([image])[0], FORMS[0])
        clients.append(threading.Thread(target=send, args=(seed, expected, encoded(image))))
    for client in clients:
        client.start()
    for client in clients:
        client.join(180)
    assert wrong == []


@pytest.mark.slow
def test_killed_worker_is_replaced_and_keeps_its_counters(pair: hosts.Host) -> None:
    before, answered = pair.workers(), metric(pair, 'pspnet_requests_total{status="200"}')
    stop, statuses = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            try:
                with pair.client() as client:
                    statuses.append(client.post(FRAME, "image/png").status)
            except (OSError, http.client.HTTPException):
                statuses.append(0)

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        until(lambda: len(statuses) > 5)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: metric(pair, "pspnet_worker_restarts_total") == 1)
        seen = len(statuses)
        until(lambda: len(statuses) > seen + 5)  # the other worker keeps answering
        until(lambda: metric(pair, "pspnet_workers_ready") == 2)
    finally:
        stop.set()
        for client in clients:
            client.join(120)
    after = pair.workers()
    assert len(after) == 2
    assert before[0] not in after
    assert before[1] in after
    # Only requests in progress on the killed worker may be lost.
    assert sum(status != 200 for status in statuses) <= 3, statuses
    assert metric(pair, 'pspnet_requests_total{status="200"}') >= answered + statuses.count(200)


def test_terminated_worker_loses_no_requests(pair: hosts.Host) -> None:
    first, stop, statuses = pair.workers()[0], threading.Event(), []

    def load() -> None:
        with pair.client() as client:
            while not stop.is_set():
                statuses.append(client.post(FRAME, "image/png").status)

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        until(lambda: len(statuses) > 5)
        os.kill(first, signal.SIGTERM)
        until(lambda: first not in pair.workers())
    finally:
        stop.set()
        for client in clients:
            client.join(120)
    assert set(statuses) == {200}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_graceful_shutdown_under_load_answers_accepted_requests(
    model_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with hosts.serve(model_dir, tmp_path, arguments=SMALL) as host:
        host.wait_ready(FRAME, "image/png")
        statuses: list[object] = []
        busy = threading.Barrier(6)

        def load() -> None:
            with host.client() as client:
                for turn in range(1000):
                    try:
                        statuses.append(client.post(FRAME, "image/png").status)
                    except ConnectionRefusedError:
                        return  # the socket is closed
                    except (OSError, http.client.HTTPException) as error:
                        statuses.append(error)
                        return
                    if turn == 0:
                        busy.wait(60)

        clients = [threading.Thread(target=load) for _ in range(5)]
        for client in clients:
            client.start()
        busy.wait(60)
        time.sleep(0.3)
        os.killpg(host.process.pid, number) if number == signal.SIGINT else host.process.send_signal(number)
        for client in clients:
            client.join(120)
        assert host.process.wait(60) == 0, host.tail()
        until(lambda: host.processes() == {})
        assert len(statuses) > 5
        # A connection in the listen backlog has not been accepted, and is reset.
        lost = [status for status in statuses if status != 200 and not isinstance(status, ConnectionResetError)]
        assert lost == [], host.tail()
        assert '"clean": true' in host.tail()


@pytest.mark.slow
def test_workers_exit_if_the_supervisor_is_killed(model_dir: Path, tmp_path: Path) -> None:
    with hosts.serve(model_dir, tmp_path, arguments=SMALL) as host:
        host.wait_ready(FRAME, "image/png")
        host.process.kill()
        until(lambda: host.workers() == [])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", host.port), timeout=10)


def test_port_in_use_and_foreign_address_are_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: cannot listen on 127\.0\.0\.1 .*in use"):
            open_listener("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"--host 256\.1\.1\.1: not an address of this machine"):
        open_listener("256.1.1.1", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        open_listener("192.0.2.1", 0)
