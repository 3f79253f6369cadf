"""Webhook against a local server: requests, retried responses and settings."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.errors import ConfigError
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.factory import open_sink
from pspnet.stream.sinks.sink_settings import SinkSettings
from pspnet.stream.sinks.webhook import WebhookSink, read_retry_after
from tests.masks.mask_items import START, item, scene


class Receiver:
    """Server that records requests and returns queued responses (status, headers); None disconnects."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str]] | None] = []
        self.connections = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver.answers.pop(0) if receiver.answers else (204, {})
                if answer is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                receiver.requests.append((self.path, dict(self.headers), body))
                self.send_response(answer[0])
                for name, value in {"Content-Length": "0", **answer[1]}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def context(**settings: str) -> SinkContext:
    return SinkContext(("road", "car"), settings=SinkSettings(**settings))


def test_png_files_over_one_connection(receiver: Receiver) -> None:
    sink = open_sink(f"{receiver.url}/masks?key=1", context())
    assert isinstance(sink, WebhookSink)
    assert sink.name == f"{receiver.url}/masks [query 5d5a2f99]"
    for index in range(3):
        sink.write(item(index))
    sink.flush()
    sink.close()
    assert [path for path, _, _ in receiver.requests] == ["/masks?key=1"] * 3
    assert receiver.connections == 1
    _, headers, body = receiver.requests[2]
    assert headers["Content-Type"] == "image/png"
    assert (headers["X-Pspnet-Frame"], headers["X-Pspnet-Captured"]) == ("2", f"{START + 0.2:.6f}")
    assert np.array_equal(np.array(Image.open(io.BytesIO(body))), scene(2))


def test_json_with_classes(receiver: Receiver) -> None:
    sink = WebhookSink(receiver.url, context(webhook_send="json"))
    sink.write(item(4, np.array([[0, 1, 1, 7]], dtype=np.uint8), fragment="9"))
    sink.close()
    path, headers, body = receiver.requests[0]
    assert path == "/"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "frame": 4,
        "captured": START + 0.4,
        "timestamp": 0.4,
        "labels": {"fragment": "9"},
        "width": 4,
        "height": 1,
        "classes": [
            {"id": 0, "name": "road", "pixels": 1, "fraction": 0.25},
            {"id": 1, "name": "car", "pixels": 2, "fraction": 0.5},
            {"id": 7, "name": "class_7", "pixels": 1, "fraction": 0.25},
        ],
    }


@pytest.mark.parametrize(
    ("status", "temporary"),
    [(500, True), (503, True), (429, True), (408, True), (400, False), (404, False), (302, False)],
)
def test_temporary_and_permanent_responses(receiver: Receiver, status: int, temporary: bool) -> None:
    receiver.answers = [(status, {"Location": "http://127.0.0.1:1/elsewhere"})]
    sink = WebhookSink(receiver.url, context())
    with pytest.raises(SinkError, match=f"the server returned {status} for frame 0") as caught:
        sink.write(item(0))
    assert caught.value.temporary is temporary
    assert ("are not followed" in str(caught.value)) is (status == 302)
    sink.write(item(0))
    sink.close()
    assert len(receiver.requests) == 2


@pytest.mark.slow
def test_no_request_is_sent_before_retry_after(receiver: Receiver) -> None:
    receiver.answers = [(429, {"Retry-After": "2"})]
    sink = WebhookSink(receiver.url, context())
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(SinkError) as caught:
            sink.write(item(0))
        assert caught.value.temporary
    sent = len(receiver.requests)
    while time.monotonic() < started + 60:
        try:
            sink.write(item(0))
        except SinkError:
            time.sleep(0.1)
            continue
        break
    assert time.monotonic() - started >= 2
    assert sent == 1
    assert len(receiver.requests) == 2
    sink.close()


def test_a_connection_closed_by_the_server_is_reopened(receiver: Receiver) -> None:
    receiver.answers = [(200, {}), None]
    sink = WebhookSink(receiver.url, context())
    sink.write(item(0))
    sink.write(item(1))
    sink.close()
    assert [headers["X-Pspnet-Frame"] for _, headers, _ in receiver.requests] == ["0", "1"]


def test_an_unreachable_server_is_a_temporary_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sink = WebhookSink(f"http://127.0.0.1:{port}/x", context())
    with pytest.raises(SinkError, match="cannot be reached") as caught:
        sink.write(item(0))
    assert caught.value.temporary
    sink.close()


def test_a_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = WebhookSink(f"http://127.0.0.1:{silent.getsockname()[1]}/x", context(webhook_timeout="0.2"))
        with pytest.raises(SinkError, match="timed out") as caught:
            sink.write(item(0))
        assert caught.value.temporary
        sink.close()


def test_secrets_come_from_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "s3cret")
    headers = "Authorization: Bearer ${HOOK_TOKEN}; X-Car: 7"
    sink = WebhookSink(receiver.url, context(webhook_headers=headers))
    sink.write(item(0))
    sink.close()
    headers = receiver.requests[0][1]
    assert (headers["Authorization"], headers["X-Car"]) == ("Bearer s3cret", "7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Authorization", "invalid header; expected NAME: VALUE"),
        ("A B: c", "invalid header; expected NAME: VALUE"),
        ("A: ${MISSING}", "the environment variable MISSING is not set"),
        ("A: ${SPLIT}", "the value of A has characters not allowed"),
    ],
)
def test_invalid_headers_raise(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLIT", "one\r\nX: secret")
    with pytest.raises(ConfigError, match=message) as caught:
        SinkSettings(webhook_headers=text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("http://", {}, "not a URL"),
        ("http://host:port/", {}, "invalid port"),
        ("ftp://host/", {}, "not a URL"),
        ("http://me:secret@host:port/x", {}, r"http://\*\*\*@host:port/x: invalid port"),
        ("http:///x?key=secret", {}, "http:///x: not a URL"),
        ("http://me:pw@host/", {}, "has a password"),
        ("http://host/", {"webhook_send": "xml"}, "webhook_send: found 'xml'; allowed: png or json"),
        ("http://host/", {"webhook_timeout": "0"}, "webhook_timeout: found '0'"),
    ],
)
def test_invalid_urls_and_settings_raise(url: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        WebhookSink(url, context(**settings))
    assert "secret" not in str(caught.value)


def test_names_distinguish_queries_without_showing_them() -> None:
    names = [WebhookSink(f"http://host/p{query}", context()).name for query in ("?cam=1", "?cam=2", "")]
    assert len(set(names)) == 3
    assert names[2] == "http://host/p"
    assert not any("cam" in name for name in names)


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert read_retry_after("7") == 7
    assert read_retry_after(None) is None
    assert read_retry_after("soon") is None
    found = read_retry_after(formatdate(time.time() + 100, usegmt=True))
    assert found is not None
    assert 30 < found <= 101
