"""Sink that serves a web page with the live overlay as Motion JPEG, and the statistics.

GET /             the page
GET /stream.mjpg  multipart/x-mixed-replace, a JPEG for each frame until the client disconnects
GET /frame.jpg    the newest frame
GET /status.json  the statistics

It listens on 127.0.0.1 only, and accepts only local Host headers, which prevents DNS rebinding: otherwise another web
page could read the camera images through a domain name that resolves to 127.0.0.1.
"""

from __future__ import annotations

import html
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from PIL import Image

from pspnet.errors import ConfigError
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.rendering import render

DEFAULT_PORT = 8090
_QUALITY = 80  # of the JPEG frames
_MAX_CLIENTS = 16
_CLIENT_SECONDS = 20.0  # timeout of a client for one frame
_BOUNDARY = "pspnet-frame"
_POLICY = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'"
_FILES = {"/page.js": "text/javascript", "/page.css": "text/css"}


class WebSink:
    """Web server for the newest item. Frames are rendered and encoded only while a client is connected."""

    durable, spills = False, False

    def __init__(self, text: str, context: SinkContext) -> None:
        """text: web or web:PORT; port 0 for any free one. Raises ConfigError for other texts, SinkError if in use."""
        port = read_port(text)
        try:
            self._server = _Server(port, context)
        except OSError as error:
            raise SinkError(
                f"{text}: cannot listen on 127.0.0.1:{port} ({error.strerror or error}); pass another port, web:PORT.",
                temporary=False,
            ) from error
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self.name = f"web {self.url}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()
        context.report(f"Open {self.url} in a browser.")

    def write(self, item: MaskedFrame) -> None:
        """See Sink."""
        self._server.newest.set(item)

    def flush(self) -> None:
        """See Sink."""

    def close(self) -> None:
        """See Sink. The streams of all clients end."""
        self._server.newest.end()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def read_port(text: str) -> int:
    """Return the port of web or web:PORT. Raises ConfigError."""
    port = text.partition(":")[2] or str(DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and int(port) < 65536) or text == "web:":
        raise ConfigError(f"{text}: expected web or web:PORT with a port from 0 to 65535.")
    return int(port)


class _NewestItem:
    """The newest item, with its JPEG rendered on demand and cached. Thread-safe."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._changed = threading.Condition()
        self._rendering = threading.Lock()
        self._item: MaskedFrame | None = None
        self._jpeg: tuple[MaskedFrame, bytes] | None = None
        self.ended = False

    def set(self, item: MaskedFrame) -> None:
        with self._changed:
            self._item = item
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def next(self, after: MaskedFrame | None, timeout: float | None) -> MaskedFrame | None:
        """Wait for an item other than `after` and return it; None at the end and after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self._item is not after, timeout)
            return None if self._item is after else self._item

    def jpeg(self, item: MaskedFrame) -> bytes:
        with self._rendering:
            if self._jpeg is None or self._jpeg[0] is not item:
                buffer = io.BytesIO()
                Image.fromarray(render(item, self._context)).save(buffer, format="JPEG", quality=_QUALITY)
                self._jpeg = (item, buffer.getvalue())
            return self._jpeg[1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, port: int, context: SinkContext) -> None:
        self.context = context
        self.newest = _NewestItem(context)
        self.clients = threading.BoundedSemaphore(_MAX_CLIENTS)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect during a response."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_SECONDS
    server_version = "pspnet"
    sys_version = ""

    def do_GET(self) -> None:
        """Respond to one request."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        path = self.path.partition("?")[0]
        if host not in ("127.0.0.1", "localhost"):
            self._respond(403, "text/plain", b"This page is only available on this machine.\n")
        elif path == "/":
            self._respond(200, "text/html; charset=utf-8", page(self.server.context).encode())
        elif path in _FILES:
            self._respond(200, _FILES[path], _resource(path[1:]).encode())
        elif path == "/favicon.ico":  # requested by every browser
            self._respond(204, "image/x-icon", b"")
        elif path == "/status.json":
            self._respond(200, "application/json", json.dumps(self.server.context.status()).encode())
        elif path == "/frame.jpg":
            self._frame()
        elif path == "/stream.mjpg":
            self._stream()
        else:
            self._respond(404, "text/plain", b"Not found; use /, /stream.mjpg, /frame.jpg or /status.json.\n")

    def _respond(self, status: int, content_type: str, body: bytes) -> None:
        self._head(status, content_type, len(body))
        self.wfile.write(body)

    def _head(self, status: int, content_type: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()

    def _frame(self) -> None:
        item = self.server.newest.next(None, 5.0)
        if item is None:
            self._respond(503, "text/plain", b"No frame yet.\n")
        else:
            self._respond(200, "image/jpeg", self.server.newest.jpeg(item))

    def _stream(self) -> None:
        if not self.server.clients.acquire(blocking=False):
            self._respond(503, "text/plain", b"Too many clients.\n")
            return
        newest = self.server.newest
        item: MaskedFrame | None = None
        try:
            self._head(200, f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            self.wfile.write(f"--{_BOUNDARY}\r\n".encode())
            while (item := newest.next(item, None)) is not None:
                content = newest.jpeg(item)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                # The trailing boundary marks the frame as complete; otherwise browsers show it with the next one.
                self.wfile.write(head.encode() + content + f"\r\n--{_BOUNDARY}\r\n".encode())
        finally:
            self.server.clients.release()
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Disable the request log."""


def page(context: SinkContext) -> str:
    """Return the HTML of the page."""
    square = '<svg viewBox="0 0 12 12" aria-hidden="true"><rect width="12" height="12" fill="{}"/></svg>'
    classes = "".join(
        f"<li>{square.format(_colour(context, number))}{html.escape(name)}</li>"
        for number, name in enumerate(context.class_names)
    )
    return _resource("page.html").format(source=html.escape(context.source), classes=classes)


def _colour(context: SinkContext, class_id: int) -> str:
    return "#" + bytes(context.palette[class_id]).hex()


def _resource(name: str) -> str:
    return files("pspnet.stream.sinks").joinpath("page").joinpath(name).read_text(encoding="utf-8")
