"""Load generators for a host, serial or with concurrent clients, and summaries of their times."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.support.hosts import Host, Reply

_DURATION = re.compile(r"(\w+);dur=([0-9.]+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Sent:
    """One request."""

    body: bytes
    content_type: str = "image/jpeg"
    accept: str = "image/png"


@dataclass
class Times:
    """Milliseconds of serial requests: total HTTP time, and the stages that the host reports."""

    total: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)

    def add(self, reply: Reply) -> None:
        """Add a reply. Raises ValueError for a status other than 200, or without the predictor's time."""
        stages = server_timing(reply)
        if reply.status != 200 or "predict" not in stages:
            raise ValueError(f"the host answered {reply.status} with Server-Timing {stages}: {reply.body[:200]!r}")
        self.total.append(1000 * reply.seconds)
        for name, value in stages.items():
            self.stages.setdefault(name, []).append(value)

    @property
    def overhead(self) -> list[float]:
        """Total HTTP time minus the predictor's own, for each request."""
        return [total - predict for total, predict in zip(self.total, self.stages["predict"])]


def server_timing(reply: Reply) -> dict[str, float]:
    """Milliseconds by stage from the reply's Server-Timing header."""
    return {name: float(value) for name, value in _DURATION.findall(reply.headers.get("server-timing", ""))}


class Wire:
    """One keep-alive connection, timed from the first byte sent to the last byte received.

    Requests are built before and replies parsed after that, so the client's own work does not count.
    """

    def __init__(self, port: int, seconds: float = 120.0) -> None:
        self._port = port
        self._socket = socket.create_connection(("127.0.0.1", port), seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def post(self, sent: Sent) -> Reply:
        """POST /invocations. Raises OSError if the host disconnects, ValueError for a reply without Content-Length."""
        head = (
            f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: {sent.content_type}\r\n"
            f"Accept: {sent.accept}\r\nContent-Length: {len(sent.body)}\r\n\r\n"
        )
        request, answer, wanted = head.encode() + sent.body, bytearray(), None
        start = time.perf_counter()
        self._socket.sendall(request)
        while wanted is None or len(answer) < wanted:
            piece = self._socket.recv(1_048_576)
            if not piece:
                raise ConnectionError(f"the host closed the connection after {len(answer)} bytes of its answer")
            answer += piece
            if wanted is None:
                wanted = _reply_length(answer)
        seconds = time.perf_counter() - start
        lines, _, body = bytes(answer).partition(b"\r\n\r\n")
        first, *fields = lines.decode("latin-1").split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (field.partition(":") for field in fields)}
        return Reply(int(first.split()[1]), headers, body, seconds)


def _reply_length(answer: bytearray) -> int | None:
    """Bytes of a reply, head and body; None until its head is complete."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(answer, 0, end + 2)
    if length is None:
        raise ValueError(f"the host's answer has no Content-Length: {bytes(answer[:end])!r}")
    return end + 4 + int(length[1])


def send_serially(wire: Wire, sent: Sent, requests: int, times: Times) -> None:
    """Send the same request repeatedly on one connection."""
    for _ in range(requests):
        times.add(wire.post(sent))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile, smallest and largest; empty for no values."""
    if not values:
        return {}
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    found = {"median": p50, "p90": p90, "p99": p99, "min": min(values), "max": max(values)}
    return {name: round(float(value), 3) for name, value in found.items()}


@dataclass
class Load:
    """Results of concurrent clients: requests by status (0: connection error), and times of those with status 200."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)


def run_load(host: Host, clients: int, seconds: float, next_request: Callable[[int], Sent]) -> Load:
    """Keep `clients` connections busy for `seconds`; `next_request` returns request number n of a client."""
    found, lock, deadline = Load(), threading.Lock(), time.monotonic() + seconds

    def run() -> None:
        statuses: Counter[int] = Counter()
        milliseconds = []
        with host.client() as client:
            number = 0
            while time.monotonic() < deadline:
                sent = next_request(number)
                number += 1
                try:
                    reply = client.post(sent.body, sent.content_type, sent.accept)
                except (OSError, http.client.HTTPException):
                    statuses[0] += 1
                    continue
                statuses[reply.status] += 1
                if reply.status == 200:
                    milliseconds.append(1000 * reply.seconds)
        with lock:
            found.statuses.update(statuses)
            found.milliseconds.extend(milliseconds)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.monotonic() - start  # the last replies arrive after the deadline
    return found
