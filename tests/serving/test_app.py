"""Tests of the app under uvicorn in a thread with a fake predictor: errors, queue, shutdown."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from pspnet.errors import ConfigError, WeightsError
from pspnet.inference.runtimes.trials import Choice
from pspnet.serving import app as app_module
from pspnet.serving.app import Service, create_app
from pspnet.serving.json_log import JsonLog
from pspnet.serving.serve_settings import ServeSettings
from tests.serving.pictures import encoded, noise
from tests.serving.stand_ins import StandIn

PNG = {"Content-Type": "image/png"}
FRAME = encoded(noise(32, 40))


@dataclass
class Served:
    """Server in a thread, with its service, port and log."""

    service: Service
    server: uvicorn.Server
    port: int
    log: io.StringIO

    def post(self, body: bytes = FRAME, headers: dict[str, str] = PNG, seconds: float = 60.0) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self.port}/invocations", content=body, headers=headers, timeout=seconds)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=60)

    def lines(self, event: str = "request") -> list[dict[str, Any]]:
        """Flush the log and return its lines of an event."""
        self.service.log._flush()
        return [line for line in map(json.loads, self.log.getvalue().splitlines()) if line["event"] == event]


Serve = Callable[..., Served]


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    running = []

    def start(load: Callable[[], Any], ready: bool = True, **values: object) -> Served:
        monkeypatch.setattr(app_module, "load_predictor", lambda *_: load())
        stream = io.StringIO()
        app = create_app(ServeSettings(model_dir="model", warmup_size="32x32", **values), log=JsonLog(stream))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        served = Served(app.state.service, server, listener.getsockname()[1], stream)
        until(lambda: server.started)
        if ready:
            until(lambda: served.get("/ping").status_code == 200)
        return served

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    predictor = StandIn()
    yield predictor
    predictor.go.set()


def mask_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


@pytest.mark.slow
def test_ping_reports_loading_ready_and_stuck(serve: Serve, stand_in: StandIn) -> None:
    stand_in.hold()
    served = serve(lambda: stand_in, ready=False, stuck_seconds="1")
    assert stand_in.entered.wait(60)
    assert (served.get("/ping").status_code, served.get("/ping").text) == (503, "The model is being loaded.")
    early = served.post()
    assert (early.status_code, early.text) == (503, "The model is being loaded.\n")
    assert int(early.headers["retry-after"]) >= 1
    stand_in.go.set()
    until(lambda: served.get("/ping").status_code == 200)
    stand_in.hold()
    waiting = threading.Thread(target=served.post)
    waiting.start()
    until(lambda: served.get("/ping").status_code == 503)
    assert served.get("/ping").text == "The model has not answered for 1 seconds."
    stand_in.go.set()
    waiting.join(60)
    assert served.get("/ping").status_code == 200


def test_ping_stays_503_if_the_model_does_not_load(serve: Serve) -> None:
    def fail() -> Any:
        raise WeightsError("the weights file is missing")

    served = serve(fail, ready=False)
    until(lambda: "ended" in served.get("/ping").text)
    assert served.get("/ping").status_code == 503
    (line,) = served.lines("model_failed")
    assert line["error"] == "WeightsError: the weights file is missing"
    assert "traceback" not in line


def test_failed_runtime_of_auto_is_logged_once(serve: Serve, stand_in: StandIn) -> None:
    failed = {"openvino": "WeightsError: exported from other weights"}
    choices = {(32, 32, 1): Choice("eager", failed=failed), (32, 32, 8): Choice("eager", failed=failed)}
    stand_in.runtime = SimpleNamespace(choices=choices)
    served = serve(lambda: stand_in)
    until(lambda: served.lines("runtime_failed"))
    (line,) = served.lines("runtime_failed")
    assert (line["runtime"], line["reason"]) == ("openvino", "WeightsError: exported from other weights")


def test_answer_has_timing_and_request_id(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in)
    image = noise(48, 33, 5)
    response = served.post(encoded(image), {**PNG, "X-Request-Id": "frame-1"})
    assert np.array_equal(mask_of(response), image[..., 0] % 3)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-request-id"] == "frame-1"
    stages = [part.strip().split(";dur=") for part in response.headers["server-timing"].split(",")]
    assert [name for name, _ in stages] == ["queue", "decode", "predict", "encode"]
    assert all(len(value.split(".")[1]) == 3 for _, value in stages)
    (line,) = served.lines()
    assert (line["request_id"], line["status"], line["received"]) == ("frame-1", 200, len(encoded(image)))
    assert line["sent"] == len(response.content)
    assert line["total_ms"] >= line["predict_ms"] >= 0


def test_request_log_can_be_disabled(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in, request_log="False")
    assert served.post().status_code == 200
    assert served.lines() == []


@pytest.mark.slow
def test_errors_are_single_sentences(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in, request_bytes=20_000, pixels=5_000)
    cases = [
        (served.post(b"x", {"Content-Type": "text/html"}), 415, "content type"),
        (served.post(b""), 400, "no body"),
        (served.post(FRAME[:60]), 400, "damaged"),
        (served.post(FRAME, {**PNG, "Accept": "text/html"}), 406, "text/html"),
        (served.post(FRAME, {**PNG, "X-Amzn-SageMaker-Custom-Attributes": "answer=sound"}), 400, "sound"),
        (served.post(FRAME, {**PNG, "Content-Encoding": "gzip"}), 415, "gzip"),
        (served.post(encoded(np.zeros((80, 80, 3), np.uint8))), 413, "80x80"),
        (served.post(bytes(20_001)), 413, "20,001"),
        (served.get("/nothing"), 404, "POST /invocations"),
        (served.get("/invocations"), 405, "GET is not allowed for /invocations"),
    ]
    for response, status, text in cases:
        assert (response.status_code, response.headers["content-type"]) == (status, "text/plain; charset=utf-8")
        assert text in response.text
        assert response.text.count("\n") == 1
        assert "Traceback" not in response.text
    assert mask_of(served.post()).shape == (32, 40)
    metrics = served.get("/metrics").text
    for status, count in ((200, 1), (400, 3), (404, 1), (405, 1), (406, 1), (413, 2), (415, 2)):
        assert f'pspnet_requests_total{{status="{status}"}} {count}\n' in metrics


def test_unexpected_exception_returns_only_the_request_id(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in)

    def fail(images: list[np.ndarray]) -> None:
        raise KeyError("a secret of the model")

    stand_in.before = fail
    response = served.post(headers={**PNG, "X-Request-Id": "bad-1"})
    assert response.status_code == 500
    assert response.text == "The endpoint failed to answer this request; see its log for request id bad-1.\n"
    (line,) = served.lines("defect")
    assert line["request_id"] == "bad-1"
    assert "a secret of the model" in line["traceback"]
    stand_in.before = lambda _: None
    assert served.post().status_code == 200


def chunks(count: int, size: int, pause: float = 0.0) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(size)
        time.sleep(pause)


def test_chunked_body_is_limited_while_it_arrives(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in, request_bytes=100_000)
    url = f"http://127.0.0.1:{served.port}/invocations"
    whole = httpx.post(url, content=iter([FRAME[:50], FRAME[50:]]), headers=PNG, timeout=60)
    assert mask_of(whole).shape == (32, 40)
    refused = httpx.post(url, content=chunks(50, 10_000), headers=PNG, timeout=60)
    assert (refused.status_code, refused.headers["connection"]) == (413, "close")
    assert "100,000 bytes" in refused.text
    assert served.service._held == 0


@pytest.mark.slow
def test_slow_client_times_out_without_blocking_others(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in, body_seconds="1.5", queue="1")
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as slow:
        slow.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\nabc"
        )
        for _ in range(3):
            assert served.post().status_code == 200
        answer = slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"within 1.5 seconds" in answer or b"within 1.5 seconds" in slow.recv(65536)


@pytest.mark.slow
def test_full_queue_answers_503_immediately(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in, queue="2")
    stand_in.hold()
    answers: list[httpx.Response] = []
    clients = [threading.Thread(target=lambda: answers.append(served.post())) for _ in range(3)]
    clients[0].start()
    assert stand_in.entered.wait(60)
    for client in clients[1:]:
        client.start()
    until(lambda: served.service.engine.full)
    refused = served.post()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "try again" in refused.text
    assert "pspnet_queue_depth 2\n" in served.get("/metrics").text
    assert served.get("/ping").status_code == 200
    stand_in.go.set()
    for client in clients:
        client.join(60)
    assert [answer.status_code for answer in answers] == [200] * 3


def test_concurrent_clients_receive_their_own_masks(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in, max_batch="4")
    wrong: list[str] = []

    def send(seed: int) -> None:
        with httpx.Client(timeout=60) as client:
            for turn in range(8):
                image = noise(32 + seed % 2, 40, 100 * seed + turn)
                url = f"http://127.0.0.1:{served.port}/invocations"
                answer = client.post(url, content=encoded(image), headers=PNG)
                if answer.status_code != 200 or not np.array_equal(mask_of(answer), image[..., 0] % 3):
                    wrong.append(f"{seed} {turn} {answer.status_code}")

    clients = [threading.Thread(target=send, args=(seed,)) for seed in range(6)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(120)
    assert wrong == []
    assert sum(len(batch) for batch in stand_in.batches) >= 48


def test_request_of_a_disconnected_client_is_not_predicted(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in)
    stand_in.hold()
    stand_in.batches.clear()
    first = threading.Thread(target=served.post)
    first.start()
    assert stand_in.entered.wait(60)
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("POST", "/invocations", encoded(noise(64, 64)), PNG)
    until(lambda: len(served.service.engine._queue) == 1)
    connection.close()
    until(lambda: len(served.service.engine._queue) == 0)
    stand_in.go.set()
    first.join(60)
    assert mask_of(served.post()).shape == (32, 40)
    assert (64, 64) not in [size for batch in stand_in.batches for size in batch]
    until(lambda: [line for line in served.lines() if line["status"] == 499])


def test_draining_closes_connections(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in)
    assert "connection" not in served.post().headers
    served.service.draining = True
    for response in (served.post(), served.post(b""), served.get("/ping"), served.get("/metrics")):
        assert response.headers["connection"] == "close"


def test_openapi_lists_all_paths(serve: Serve, stand_in: StandIn) -> None:
    served = serve(lambda: stand_in)
    schema = served.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/ping", "/invocations", "/metrics"}
    offered = schema["paths"]["/invocations"]["post"]["responses"]["200"]["content"]
    assert {"image/png", "application/json", "application/x-protobuf"} <= set(offered)


def test_factory_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_MODEL_DIR", "/some/model")
    monkeypatch.setenv("PSPNET_QUEUE", "5")
    monkeypatch.setenv("PSPNET_PIXELS", "4096")
    service = create_app().state.service
    assert (service.settings.model_dir, service.settings.queue) == (Path("/some/model"), 5)
    assert service.settings.pixels == 4096
    monkeypatch.setenv("PSPNET_QUEUE", "none")
    with pytest.raises(ConfigError, match="PSPNET_QUEUE"):
        create_app()


def test_replacement_listens_after_its_model_is_ready(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    monkeypatch.setattr(app_module, "load_predictor", lambda *_: stand_in)
    stand_in.hold()
    settings = ServeSettings(model_dir="model", warmup_size="32x32")
    app = create_app(settings, log=JsonLog(io.StringIO()), listen_when_ready=True)

    async def start() -> None:
        entering = asyncio.ensure_future(app.router.lifespan_context(app).__aenter__())
        await asyncio.sleep(0.2)
        assert not entering.done()
        stand_in.go.set()
        await asyncio.wait_for(entering, 60)
        assert app.state.service.engine.problem() is None
        app.state.service.engine.abort()

    asyncio.run(start())
