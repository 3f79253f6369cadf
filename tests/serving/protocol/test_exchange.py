"""Tests of a request on plain ASGI: headers, size and time limits, early answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pspnet.serving.protocol import exchange as exchange_module
from pspnet.serving.protocol.exchange import ClientGoneError, Exchange
from pspnet.serving.protocol.request_error import RequestError


class Connection:
    """Fake ASGI connection: incoming chunks and sent messages."""

    def __init__(self, *chunks: bytes | None, more: bool = False) -> None:
        messages: list[dict[str, Any]] = [
            {"type": "http.disconnect"} if chunk is None else {"type": "http.request", "body": chunk, "more_body": True}
            for chunk in chunks
        ]
        if messages and not more and chunks[-1] is not None:
            messages[-1]["more_body"] = False
        self.incoming = messages
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self.incoming:
            await asyncio.sleep(3600)
        return self.incoming.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    def exchange(self, headers: list[tuple[bytes, bytes]] = [], method: str = "POST") -> Exchange:  # noqa: B006
        return Exchange({"method": method, "path": "/invocations", "headers": headers}, self.receive, self.send)

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sent[0]["headers"]).get(name)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def read(
    connection: Connection, limit: int = 10, seconds: float = 60.0, hold: Callable[[int], None] = lambda _: None
) -> Any:
    return run(connection.exchange().read_body(limit, seconds, hold))


def test_known_headers_are_kept_and_repeated_ones_joined() -> None:
    headers = [(b"accept", b"image/png;q=0.5"), (b"cookie", b"secret"), (b"accept", b"application/json")]
    exchange = Connection().exchange([*headers, (b"content-type", b"image/jpeg")])
    assert exchange.headers == {"accept": "image/png;q=0.5, application/json", "content-type": "image/jpeg"}


@pytest.mark.parametrize(
    ("given", "kept"), [("frame-7.a_B", True), ("", False), ("a b", False), ("x" * 65, False), ("é", False)]
)
def test_only_simple_request_ids_are_kept(given: str, kept: bool) -> None:
    found = Connection().exchange([(b"x-request-id", given.encode())]).request_id
    assert found == given if kept else len(found) == 16
    assert Connection().exchange().request_id != Connection().exchange().request_id


def test_body_in_one_or_many_chunks() -> None:
    held: list[int] = []
    assert read(Connection(b"0123456789")) == b"0123456789"
    assert read(Connection(b"0123", b"", b"45", b"6789"), hold=held.append) == b"0123456789"
    assert held == [4, 0, 2, 4]
    assert read(Connection(b"")) == b""


def test_body_over_the_limit_is_rejected_early() -> None:
    connection = Connection(b"01234567", b"890", b"more")
    with pytest.raises(RequestError, match="larger than the 10 bytes") as caught:
        read(connection)
    assert caught.value.status == 413
    assert len(connection.incoming) == 1
    announced = Connection(b"x")
    with pytest.raises(RequestError, match="has 11 bytes") as caught:
        run(announced.exchange([(b"content-length", b"11")]).read_body(10, 60.0, lambda _: None))
    assert caught.value.status == 413
    assert len(announced.incoming) == 1


def test_slow_body_times_out() -> None:
    with pytest.raises(RequestError, match=r"within 0\.05 seconds") as caught:
        read(Connection(b"0", b"1", more=True), seconds=0.05)
    assert caught.value.status == 408


def test_disconnect_and_rejecting_hold() -> None:
    with pytest.raises(ClientGoneError):
        read(Connection(b"01", None))
    with pytest.raises(ClientGoneError):
        read(Connection(None))

    def refuse(size: int) -> None:
        raise RequestError(503, "full")

    with pytest.raises(RequestError, match="full"):
        read(Connection(b"01"), hold=refuse)


def test_gone_returns_when_the_client_disconnects() -> None:
    connection = Connection(b"01", None)

    async def wait_gone() -> None:
        exchange = connection.exchange()
        exchange._body_read = True
        await exchange.gone()

    run(wait_gone())


def test_answer() -> None:
    connection = Connection(b"01")

    async def respond() -> Exchange:
        exchange = connection.exchange([(b"x-request-id", b"id7")])
        await exchange.read_body(10, 60.0, lambda _: None)
        await exchange.answer(200, b"mask", "image/png", (("server-timing", "a;dur=1"),))
        return exchange

    exchange = run(respond())
    start, body = connection.sent
    assert (start["status"], body["body"], body["more_body"]) == (200, b"mask", False)
    assert dict(start["headers"]) == {
        b"content-type": b"image/png", b"content-length": b"4", b"x-request-id": b"id7", b"server-timing": b"a;dur=1"
    }  # fmt: skip
    assert (exchange.status, exchange.received, exchange.sent) == (200, 2, 4)


def test_early_answer_drains_the_body_and_closes() -> None:
    connection = Connection(b"0" * 100, b"1" * 100, b"2")
    run(connection.exchange().answer(413, b"too large", "text/plain"))
    assert connection.header(b"connection") == b"close"
    assert [(m.get("body"), m.get("more_body")) for m in connection.sent[1:]] == [(b"too large", True), (b"", False)]
    assert connection.incoming == []


def test_early_answer_drains_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "_DRAIN_BYTES", 150)
    monkeypatch.setattr(exchange_module, "_DRAIN_SECONDS", 0.05)
    connection = Connection(*[b"0" * 100] * 5, more=True)
    run(connection.exchange().answer(413, b"x", "text/plain"))
    assert len(connection.incoming) == 3
    silent = Connection(b"0", more=True)
    run(silent.exchange().answer(413, b"x", "text/plain"))
    assert silent.sent[-1]["more_body"] is False


def test_get_is_answered_without_reading_the_body() -> None:
    connection = Connection(b"x")
    run(connection.exchange(method="GET").answer(200, b"", "text/plain"))
    assert connection.header(b"connection") is None
    assert len(connection.incoming) == 1
