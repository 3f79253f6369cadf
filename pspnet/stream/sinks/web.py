"""A page on this machine that shows the stream in a browser: Motion JPEG, and the numbers beside it.

GET /             the page
GET /stream.mjpg  multipart/x-mixed-replace, a JPEG for each frame, for as long as the client stays
GET /frame.jpg    the newest frame
GET /status.json  the statistics

It listens on 127.0.0.1 alone, and answers only requests that name this machine as their host: otherwise a foreign web
page could read the camera's pictures through a name that it lets point here.
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
_MOST_CLIENTS = 16
_CLIENT_SECONDS = 20.0  # that a client may take for one frame
_BOUNDARY = "pspnet-frame"
_POLICY = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'"
_FILES = {"/page.js": "text/javascript", "/page.css": "text/css"}


class WebSink:
    """A web server that shows the newest item. Frames are painted and encoded only while somebody looks."""

    durable = False
    wants_images = True

    def __init__(self, text: str, context: SinkContext) -> None:
        """text: web or web:PORT; port 0 for any free one. Raises ConfigError for another text, SinkError if taken."""
        port = text.partition(":")[2] or str(DEFAULT_PORT)
        if not (port.isascii() and port.isdigit() and int(port) < 65536) or text == "web:":
            raise ConfigError(f"{text}: expected web or web:PORT with a port from 0 to 65535.")
        try:
            self._server = _Server(int(port), context)
        except OSError as error:
            raise SinkError(
                f"{text}: 127.0.0.1:{port} cannot be used ({error.strerror or error}); give another port, web:PORT.",
                temporary=False,
            ) from error
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self.name = f"web {self.url}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()
        context.report(f"Look at {self.url} in a browser.")

    def write(self, item: MaskedFrame) -> None:
        """As Sink."""
        self._server.shown.set(item)

    def flush(self) -> None:
        """As Sink."""

    def close(self) -> None:
        """As Sink. Clients are told that it is over."""
        self._server.shown.end()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Shown:
    """The newest item, and its JPEG once somebody wants it."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._changed = threading.Condition()
        self._painting = threading.Lock()
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
        """The newest item once it is another than `after`; None at the end, or when none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self._item is not after, timeout)
            return None if self._item is after else self._item

    def jpeg(self, item: MaskedFrame) -> bytes:
        with self._painting:
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
        self.shown = _Shown(context)
        self.clients = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_SECONDS
    server_version = "pspnet"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        path = self.path.partition("?")[0]
        if host not in ("127.0.0.1", "localhost"):
            self._answer(403, "text/plain", b"This page is for this machine alone.\n")
        elif path == "/":
            self._answer(200, "text/html; charset=utf-8", page(self.server.context).encode())
        elif path in _FILES:
            self._answer(200, _FILES[path], _resource(path[1:]).encode())
        elif path == "/favicon.ico":  # every browser asks for it
            self._answer(204, "image/x-icon", b"")
        elif path == "/status.json":
            self._answer(200, "application/json", json.dumps(self.server.context.status()).encode())
        elif path == "/frame.jpg":
            self._frame()
        elif path == "/stream.mjpg":
            self._stream()
        else:
            self._answer(404, "text/plain", b"There is /, /stream.mjpg, /frame.jpg and /status.json.\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
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
        item = self.server.shown.next(None, 5.0)
        if item is None:
            self._answer(503, "text/plain", b"There is no frame yet.\n")
        else:
            self._answer(200, "image/jpeg", self.server.shown.jpeg(item))

    def _stream(self) -> None:
        if not self.server.clients.acquire(blocking=False):
            self._answer(503, "text/plain", b"Too many are looking already.\n")
            return
        shown = self.server.shown
        item: MaskedFrame | None = None
        try:
            self._head(200, f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            self.wfile.write(f"--{_BOUNDARY}\r\n".encode())
            while (item := shown.next(item, None)) is not None:
                content = shown.jpeg(item)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                # The boundary behind a frame tells a browser that it is complete; else it waits for the next one.
                self.wfile.write(head.encode() + content + f"\r\n--{_BOUNDARY}\r\n".encode())
        finally:
            self.server.clients.release()
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not logged."""


def page(context: SinkContext) -> str:
    """The page's HTML."""
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
