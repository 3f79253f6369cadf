"""Seeded generator of malformed requests: damaged images and invalid headers.

Request number n of a seed is deterministic, so a failure can be reproduced alone.
"""

from __future__ import annotations

import http.client
import io
import socket
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.hosts.exchange import encoded, npy, picture

_TYPES = (
    "image/png", "image/jpeg", "image/jpg", "image/webp", "application/x-npy", "application/x-image", "IMAGE/PNG; a=b",
    "application/octet-stream", "image/gif", "application/json", "text/csv", "text/plain", "image/png, image/jpeg",
    'image/png;charset="', ";;;", "", "/",
)  # fmt: skip
_FORM_TYPES = ("multipart/form-data", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded")
_ACCEPTS = (
    "image/png", "image/png; palette=true", "image/jpeg", "application/json", "application/x-protobuf", "image/*",
    "application/x-recordio-protobuf", "application/x-npy", "application/x-npz; probabilities=uint8", "*/*", "",
    "application/x-npy;probabilities=float16", 'image/png;palette="', "*", "a/b;q=2", "text/html;q=1e9", "q=0", ",,,;=",
)  # fmt: skip
_ATTRIBUTES = (
    "answer=overlay", "answer=palette", "answer=", "answer=\x7f", "=,=;", "answer=summary, answer=mask", "x" * 900,
)  # fmt: skip
_METHODS = ("POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS", "post", "P\x00ST", "")
_PATHS = ("/invocations", "/ping", "/metrics", "/", "/invocations/", "/invocations?x=1", "/%2e%2e/etc", "//", "*")


@dataclass(frozen=True)
class Request:
    """Bytes of an HTTP request. If not `whole`, its framing is incomplete or invalid."""

    data: bytes
    whole: bool


@dataclass(frozen=True)
class Answer:
    """Answer of a host; `status` is 0 if it closed the connection without one."""

    status: int
    content_type: str
    body: bytes


def request(seed: int, number: int, plain: bool = False) -> Request:
    """Return request `number` of a seed; `plain` ones have a valid request line and length, and no form type."""
    rng = np.random.default_rng((seed, number))
    body = _body(rng)
    lines = ["POST /invocations HTTP/1.1", "Host: localhost", "Connection: close"]
    if not plain and rng.random() < 0.1:
        lines[0] = f"{rng.choice(_METHODS)} {rng.choice(_PATHS)} HTTP/1.1"
    if rng.random() < 0.9:
        odd = _TYPES if plain else _TYPES + _FORM_TYPES
        lines.append(f"Content-Type: {_header(rng, _TYPES[:6] if rng.random() < 0.8 else odd)}")
    if rng.random() < 0.8:
        lines.append(f"Accept: {', '.join(_header(rng, _ACCEPTS) for _ in range(rng.integers(1, 4)))}")
    if rng.random() < 0.2:
        lines.append(f"X-Amzn-SageMaker-Custom-Attributes: {_header(rng, _ATTRIBUTES)}")
    if rng.random() < 0.05:
        lines.append(f"Content-Encoding: {rng.choice(['gzip', 'identity', 'br', ''])}")
    whole = plain or rng.random() > 0.1
    body = _frame(lines, body) if whole else _frame_incorrectly(rng, lines, body)
    return Request("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body, whole)


def exchange(port: int, sent: Request, seconds: float = 60.0) -> Answer:
    """Send a request and read the answer. After an incomplete request, the sending side is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            connection.sendall(sent.data)
            if not sent.whole:
                connection.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connection, method="HEAD" if sent.data.startswith(b"HEAD") else "POST")
            answer.begin()
            return Answer(answer.status, answer.getheader("Content-Type", ""), answer.read())
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException):
            return Answer(0, "", b"")


def _frame(lines: list[str], body: bytes) -> bytes:
    """Frame the body with its length, or one in eleven as chunks."""
    if len(body) % 11:
        lines.append(f"Content-Length: {len(body)}")
        return body
    lines.append("Transfer-Encoding: chunked")
    return _chunked(body)


def _frame_incorrectly(rng: np.random.Generator, lines: list[str], body: bytes) -> bytes:
    """Frame the body with a wrong length, without one, or in damaged chunks."""
    choice = rng.random()
    if choice < 0.6:
        wrong = str(len(body) + int(rng.integers(-50, 50)))
        lines.append(f"Content-Length: {rng.choice([wrong, wrong, '-1', 'x', '9' * 20, ''])}")
        return body
    if choice < 0.8:
        return body
    lines.append("Transfer-Encoding: chunked")
    return _damaged(rng, _chunked(body))


def _chunked(body: bytes) -> bytes:
    half = len(body) // 2
    parts = [part for part in (body[:half], body[half:]) if part]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def _header(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """Return one of the values, sometimes with random characters inserted, or only random characters."""
    text = str(rng.choice(choices))
    choice = rng.random()
    if choice < 0.05:
        return "".join(map(chr, rng.integers(32, 256, rng.integers(0, 60))))
    if choice < 0.15:
        offset = int(rng.integers(0, len(text) + 1))
        return text[:offset] + chr(int(rng.integers(33, 256))) + text[offset:]
    return text


def _body(rng: np.random.Generator) -> bytes:
    choice = rng.random()
    if choice < 0.05:
        return bytes(rng.integers(0, 256, rng.integers(0, 400), dtype=np.uint8))
    body = _FILES[int(rng.integers(len(_FILES)))]
    if choice < 0.3:
        return body
    if choice < 0.4:
        other = _FILES[int(rng.integers(len(_FILES)))]
        return body[: rng.integers(len(body))] + other[rng.integers(len(other)) :]
    return _damaged(rng, body)


def _damaged(rng: np.random.Generator, body: bytes) -> bytes:
    """Truncate, repeat or remove a part, or change some bytes, mostly near the start."""
    choice, size = rng.random(), len(body)
    first, second = sorted(int(offset) for offset in rng.integers(0, size + 1, 2))
    if choice < 0.25:
        return body[:first]
    if choice < 0.35:
        return body[:second] + body[first:]
    if choice < 0.45:
        return body[:first] + body[second:]
    changed = bytearray(body)
    for _ in range(int(rng.integers(1, 12))):
        reach = size if rng.random() < 0.4 else min(size, 64)
        changed[int(rng.integers(reach))] = int(rng.integers(256))
    return bytes(changed)


def _files() -> list[bytes]:
    """Return small files of every supported kind, and of some unsupported ones."""
    frame = picture(40, 56)
    image = Image.fromarray(frame)
    files = [encoded(frame, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    files += [npy(frame), npy(frame[..., 0]), npy(np.asfortranarray(frame)), npy(frame.astype(np.float64))]
    for mode in ("L", "1", "P", "RGBA", "LA", "CMYK"):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, format="JPEG" if mode == "CMYK" else "PNG")
        files.append(buffer.getvalue())
    for options in ({"progressive": True}, {"save_all": True, "append_images": [image]}):
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG" if "progressive" in options else "PNG", **options)
        files.append(buffer.getvalue())
    return files


_FILES = _files()
