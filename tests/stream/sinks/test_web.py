"""Web page over HTTP, and in a browser if one is installed."""

from __future__ import annotations

import dataclasses
import http.client
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import CAMVID_CLASSES, palette_for
from pspnet.errors import ConfigError
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.factory import open_sink
from pspnet.stream.sinks.web import WebSink
from tests.stream.fakes import frame, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
STATUS = {
    "masks": 12, "late": 3, "broken": 0, "failed": 1, "recent_masks_per_second": 9.87,
    "inference": {"count": 12, "p50_ms": 84.2},
}  # fmt: skip


def item(level: int) -> MaskedFrame:
    """Return a grey frame whose right half is of class 1 (CamVid's building)."""
    one = dataclasses.replace(frame(level), image=np.full((90, 120, 3), level, dtype=np.uint8))
    mask = np.zeros((90, 120), dtype=np.uint8)
    mask[:, 60:] = 1
    return MaskedFrame(one, mask, 0.0)


@pytest.fixture
def sink() -> Iterator[WebSink]:
    def status() -> dict[str, Any]:
        latency = {"count": 12, "p50_ms": 101.0, "p95_ms": 202.0, "p99_ms": 303.0}
        return {**STATUS, "sinks": {made.name: {"latency": latency}}}

    context = SinkContext(
        class_names=CAMVID_CLASSES, palette=palette_for(CAMVID_CLASSES), source="<b>film</b>.mkv", status=status
    )
    made = open_sink("web:0", context)
    assert isinstance(made, WebSink)
    yield made
    made.close()


def get(sink: WebSink, path: str, host: str | None = None) -> tuple[int, bytes, http.client.HTTPMessage]:
    address = sink.url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


def test_the_page_escapes_the_source_and_lists_the_classes(sink: WebSink) -> None:
    status, content, headers = get(sink, "/")
    text = content.decode()
    assert status == 200
    assert "&lt;b&gt;film&lt;/b&gt;.mkv" in text
    assert "<b>" not in text
    assert all(name in text for name in CAMVID_CLASSES)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert get(sink, "/page.js")[0] == get(sink, "/page.css")[0] == 200
    assert get(sink, "/../web.py")[0] == 404
    assert json.loads(get(sink, "/status.json")[1])["masks"] == 12


def test_requests_with_another_host_header_are_rejected(sink: WebSink) -> None:
    sink.write(item(100))
    for path in ("/", "/frame.jpg", "/status.json", "/stream.mjpg"):
        status, content, _ = get(sink, path, host="evil.example")
        assert (status, content) == (403, b"This page is only available on this machine.\n")
    assert get(sink, "/status.json", host="localhost:1")[0] == 200


def test_the_newest_frame_is_rendered(sink: WebSink) -> None:
    sink.write(item(60))
    sink.write(item(100))
    status, content, _ = get(sink, "/frame.jpg")
    assert status == 200
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture).astype(int)
    np.testing.assert_allclose(pixels[40, 20], [114, 114, 114], atol=6)  # sky, 128 128 128, over 100
    np.testing.assert_allclose(pixels[40, 100], [114, 50, 50], atol=8)  # building, 128 0 0


def test_the_mjpeg_stream_sends_complete_frames_and_ends_with_the_sink(sink: WebSink) -> None:
    connection = socket.create_connection(("127.0.0.1", int(sink.url.rsplit(":", 1)[1].rstrip("/"))), timeout=60)
    connection.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    file = connection.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += file.read(1)
    assert b"multipart/x-mixed-replace; boundary=pspnet-frame" in head
    for level in (40, 200):
        sink.write(item(level))
        assert file.readline() == b"--pspnet-frame\r\n"
        assert file.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(file.readline().split(b":")[1])
        assert file.readline() == b"\r\n"
        with Image.open(io.BytesIO(file.read(length))) as picture:
            assert abs(int(np.asarray(picture)[40, 20, 0]) - (level + 128) / 2) < 5
        assert file.readline() == b"\r\n"
    ender = threading.Thread(target=sink.close)
    ender.start()
    assert file.read() == b"--pspnet-frame\r\n"
    ender.join(30)
    connection.close()


def test_nothing_is_rendered_without_clients(sink: WebSink) -> None:
    for level in range(50):
        sink.write(item(level))
    assert sink._server.newest._jpeg is None


@pytest.mark.slow
def test_too_many_clients_are_rejected(sink: WebSink) -> None:
    sink.write(item(1))
    port = int(sink.url.rsplit(":", 1)[1].rstrip("/"))
    viewers = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(16)]
    for viewer in viewers:
        viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert viewer.recv(12) == b"HTTP/1.0 200"
    assert get(sink, "/stream.mjpg")[0] == 503
    for viewer in viewers:
        viewer.close()

    def free() -> bool:
        # The server detects a disconnected client at the next frame.
        sink.write(item(int(time.monotonic() * 1000) % 256))
        if sink._server.clients.acquire(blocking=False):
            sink._server.clients.release()
            return True
        return False

    wait_until(free)


def test_invalid_and_used_ports_raise(sink: WebSink) -> None:
    with pytest.raises(ConfigError, match=r"web:http: expected web or web:PORT"):
        open_sink("web:http", SinkContext())
    port = sink.url.rsplit(":", 1)[1].rstrip("/")
    with pytest.raises(SinkError, match=rf"cannot listen on 127\.0\.0\.1:{port} .* pass another port"):
        open_sink(f"web:{port}", SinkContext())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine, so the page was NOT tried in a browser")
def test_a_browser_shows_the_stream_and_its_numbers(sink: WebSink, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: the page was NOT tried")
    errors: list[str] = []
    stopped = threading.Event()

    def play() -> None:
        level = 0
        while not stopped.wait(0.05):
            level = (level + 1) % 256
            sink.write(item(200 if level % 2 else 198))

    player = threading.Thread(target=play)
    player.start()
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS, timeout=120_000)
            page = browser.new_page(viewport={"width": 900, "height": 600})
            page.on("console", lambda message: errors.append(message.text))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(sink.url, wait_until="commit", timeout=120_000)
            # Polled from here, since the content security policy forbids the driver to evaluate conditions.
            wait_until(lambda: page.inner_text("#p95") == "202 ms", 60)
            wait_until(lambda: page.evaluate("document.getElementById('stream').naturalWidth") == 120, 60)
            assert page.inner_text("#rate") == "9.9"
            assert page.inner_text("#late") == "3"
            assert page.inner_text("#state") == "live"
            picture = page.locator("#stream").screenshot()
            stopped.set()
            player.join(10)
            sink.close()
            wait_until(lambda: page.inner_text("#state") == "stream ended", 60)
            browser.close()
    finally:
        stopped.set()
    with Image.open(io.BytesIO(picture)) as shown:
        pixels = np.asarray(shown.convert("RGB")).astype(int)
    np.testing.assert_allclose(pixels[100, 30], [164, 164, 164], atol=12)
    np.testing.assert_allclose(pixels[100, int(pixels.shape[1] * 0.9)], [164, 100, 100], atol=16)
    assert [text for text in errors if "ERR_CONNECTION" not in text and "ERR_INCOMPLETE" not in text] == []
