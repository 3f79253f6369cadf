"""Fake Kinesis Video Streams server on the loopback interface, with fragments, AWS tags and failures.

The format was taken from GetMedia's API reference and from dumps of real streams: fragment number and times in a Tags
element before the cluster, MILLIS_BEHIND_NOW and the continuation token in one after it.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")

RATE, FRAMES = 10, 4
"""Frames per second, and frames in each fragment."""
PRODUCER_TIME = 1_700_000_000.0
FIRST_NUMBER = 91343852333181432392682062600000000000000000000
CLUSTER = b"\x1f\x43\xb6\x75"
WIDTH, HEIGHT = 64, 48


def element(kind: str, content: bytes) -> bytes:
    return bytes.fromhex(kind) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def tags_element(values: dict[str, str]) -> bytes:
    simple = (
        element("67C8", element("45A3", name.encode()) + element("4487", text.encode()))
        for name, text in values.items()
    )
    return element("1254C367", element("7373", b"".join(simple)))


def picture(index: int) -> np.ndarray:
    """Return an (H, W, 3) uint8 image whose left half encodes the frame number as grey."""
    image = np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)
    image[:, : WIDTH // 2] = 20 + 10 * index
    return image


def number_of(image: np.ndarray) -> int:
    """Return the number of a decoded frame."""
    return round((float(image[8:-8, 8 : WIDTH // 2 - 8].mean()) - 20) / 10)


class _Pipe(io.RawIOBase):
    """File that cannot seek, like a producer's connection."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += bytes(data)
        return len(data)


def matroska(first: int, codec: str = "libx264", b_frames: int = 0, cluster: int = 5000) -> bytes:
    """Return a Matroska file of the pictures from `first` on, with the stream's clock; cluster: its length in ms."""
    pipe, count = _Pipe(), FRAMES
    options = {"live": "1", "cluster_time_limit": str(cluster)}
    with av.open(pipe, "w", format="matroska", options=options) as container:
        stream: Any = container.add_stream(codec, rate=RATE)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"bf": str(b_frames), "crf": "10", "g": str(count)} if codec == "libx264" else {}
        for index in range(first, first + count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return pipe.content


def fragment_tags(index: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return the AWS tags before and after the cluster of a fragment."""
    number = str(FIRST_NUMBER + index)
    produced = PRODUCER_TIME + index * FRAMES / RATE
    before = {
        "FRAGMENT_NUMBER": number,
        "SERVER_TIMESTAMP": f"{produced + 1:.3f}",
        "PRODUCER_TIMESTAMP": f"{produced:.3f}",
    }
    after = {"MILLIS_BEHIND_NOW": "120", "CONTINUATION_TOKEN": number}
    return _named(before), _named(after)


def _named(tags: dict[str, str]) -> dict[str, str]:
    return {f"AWS_KINESISVIDEO_{name}": text for name, text in tags.items()}


def fragment(index: int, **options: Any) -> bytes:
    """Return a fragment as sent by GetMedia, frames 4 * index to 4 * index + 3."""
    before, after = fragment_tags(index)
    head, _, rest = matroska(FRAMES * index, **options).partition(CLUSTER)
    return head + tags_element(before) + CLUSTER + rest + tags_element(after)


def error_tags(identity: str, text: str) -> bytes:
    return fragment(0).partition(CLUSTER)[0] + tags_element(_named({"ERROR_ID": identity, "ERROR_CODE": text}))


@dataclass
class Stall:
    """Pause with the connection open."""

    seconds: float


class Cut:
    """Close the connection before the end of the body."""


@dataclass
class Refusal:
    """Respond with an error instead of a body."""

    status: int
    code: str
    message: str = ""


Step = bytes | Stall | Cut | Refusal


@dataclass
class FakeKinesis:
    """Steps of successive GetMedia connections (later ones stay open), and the recorded requests."""

    connections: Sequence[Sequence[Step]]
    piece: int = 700
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    endpoint: Callable[[dict[str, Any]], dict[str, Any] | Refusal] | None = None

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for name, body in self.requests if name == path]

    def selectors(self) -> list[dict[str, Any]]:
        return [body["StartSelector"] for body in self.bodies("/getMedia")]


@contextmanager
def serving(fake: FakeKinesis) -> Iterator[FakeKinesis]:
    """Serve on a free port; sets `url`."""
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append((self.path, body))
            if self.path == "/getDataEndpoint":
                answer = fake.endpoint(body) if fake.endpoint else {"DataEndpoint": fake.url}
                return self.refuse(answer) if isinstance(answer, Refusal) else self.respond(200, answer)
            connection = len(fake.bodies("/getMedia")) - 1
            steps = fake.connections[connection] if connection < len(fake.connections) else [Stall(60)]
            if steps and isinstance(steps[0], Refusal):
                return self.refuse(steps[0])
            self.send_response(200)
            self.send_header("Content-Type", "video/webm")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.stream(steps)

        def respond(self, status: int, value: dict[str, Any], code: str = "") -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            if code:
                self.send_header("x-amzn-ErrorType", code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refuse(self, refusal: Refusal) -> None:
            self.respond(refusal.status, {"Message": refusal.message}, refusal.code)

        def stream(self, steps: Sequence[Step]) -> None:
            for step in steps:
                if isinstance(step, Cut):
                    self.close_connection = True
                    self.wfile.flush()
                    return self.connection.shutdown(2)
                if isinstance(step, Stall):
                    stopping.wait(step.seconds)
                    continue
                assert isinstance(step, bytes)
                for at in range(0, len(step), fake.piece):
                    part = step[at : at + fake.piece]
                    self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    time.sleep(0)
            return self.wfile.write(b"0\r\n\r\n") and None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may disconnect
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
