"""One request on bare ASGI: headers, bodies within limits, early answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pspnet.serving.protocol import exchange as exchange_module
from pspnet.serving.protocol.exchange import ClientGoneError, Exchange
from pspnet.serving.protocol.request_error import RequestError


class Wire:
    """The server's side of a connection: pieces that come in, messages that went out."""

    def __init__(self, *pieces: bytes | None, more: bool = False) -> None:
        messages: list[dict[str, Any]] = [
            {"type": "http.disconnect"} if piece is None else {"type": "http.request", "body": piece, "more_body": True}
            for piece in pieces
        ]
        if messages and not more and pieces[-1] is not None:
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


def read(wire: Wire, limit: int = 10, seconds: float = 60.0, hold: Callable[[int], None] = lambda _: None) -> Any:
    return run(wire.exchange().read_body(limit, seconds, hold))


def test_headers_that_matter_are_kept_and_repeated_ones_joined() -> None:
    headers = [(b"accept", b"image/png;q=0.5"), (b"cookie", b"secret"), (b"accept", b"application/json")]
    exchange = Wire().exchange([*headers, (b"content-type", b"image/jpeg")])
    assert exchange.headers == {"accept": "image/png;q=0.5, application/json", "content-type": "image/jpeg"}


@pytest.mark.parametrize(
    ("given", "kept"), [("frame-7.a_B", True), ("", False), ("a b", False), ("x" * 65, False), ("é", False)]
)
def test_a_request_id_is_taken_over_if_it_is_a_plain_word(given: str, kept: bool) -> None:
    found = Wire().exchange([(b"x-request-id", given.encode())]).request_id
    assert found == given if kept else len(found) == 16
    assert Wire().exchange().request_id != Wire().exchange().request_id


def test_bodies_in_one_and_in_many_pieces() -> None:
    held: list[int] = []
    assert read(Wire(b"0123456789")) == b"0123456789"
    assert read(Wire(b"0123", b"", b"45", b"6789"), hold=held.append) == b"0123456789"
    assert held == [4, 0, 2, 4]
    assert read(Wire(b"")) == b""


def test_a_body_over_the_limit_is_refused_as_soon_as_it_is() -> None:
    wire = Wire(b"01234567", b"890", b"more")
    with pytest.raises(RequestError, match="larger than the 10 bytes") as caught:
        read(wire)
    assert caught.value.status == 413
    assert len(wire.incoming) == 1
    announced = Wire(b"x")
    with pytest.raises(RequestError, match="has 11 bytes") as caught:
        run(announced.exchange([(b"content-length", b"11")]).read_body(10, 60.0, lambda _: None))
    assert caught.value.status == 413
    assert len(announced.incoming) == 1


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    with pytest.raises(RequestError, match=r"within 0\.05 seconds") as caught:
        read(Wire(b"0", b"1", more=True), seconds=0.05)
    assert caught.value.status == 408


def test_a_client_that_leaves_and_a_holder_that_refuses() -> None:
    with pytest.raises(ClientGoneError):
        read(Wire(b"01", None))
    with pytest.raises(ClientGoneError):
        read(Wire(None))

    def refuse(size: int) -> None:
        raise RequestError(503, "full")

    with pytest.raises(RequestError, match="full"):
        read(Wire(b"01"), hold=refuse)


def test_gone_returns_when_the_client_leaves() -> None:
    wire = Wire(b"01", None)

    async def both() -> None:
        exchange = wire.exchange()
        exchange._body_read = True
        await exchange.gone()

    run(both())


def test_an_answer() -> None:
    wire = Wire(b"01")

    async def talk() -> Exchange:
        exchange = wire.exchange([(b"x-request-id", b"id7")])
        await exchange.read_body(10, 60.0, lambda _: None)
        await exchange.answer(200, b"mask", "image/png", (("server-timing", "a;dur=1"),))
        return exchange

    exchange = run(talk())
    start, body = wire.sent
    assert (start["status"], body["body"], body["more_body"]) == (200, b"mask", False)
    assert dict(start["headers"]) == {
        b"content-type": b"image/png", b"content-length": b"4", b"x-request-id": b"id7", b"server-timing": b"a;dur=1"
    }  # fmt: skip
    assert (exchange.status, exchange.received, exchange.sent) == (200, 2, 4)


def test_an_early_answer_lets_the_client_finish_and_closes() -> None:
    wire = Wire(b"0" * 100, b"1" * 100, b"2")
    run(wire.exchange().answer(413, b"too large", "text/plain"))
    assert wire.header(b"connection") == b"close"
    assert [(m.get("body"), m.get("more_body")) for m in wire.sent[1:]] == [(b"too large", True), (b"", False)]
    assert wire.incoming == []


def test_an_early_answer_waits_for_no_endless_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "_DRAIN_BYTES", 150)
    monkeypatch.setattr(exchange_module, "_DRAIN_SECONDS", 0.05)
    wire = Wire(*[b"0" * 100] * 5, more=True)
    run(wire.exchange().answer(413, b"x", "text/plain"))
    assert len(wire.incoming) == 3
    silent = Wire(b"0", more=True)
    run(silent.exchange().answer(413, b"x", "text/plain"))
    assert silent.sent[-1]["more_body"] is False


def test_get_is_answered_without_reading_a_body() -> None:
    wire = Wire(b"x")
    run(wire.exchange(method="GET").answer(200, b"", "text/plain"))
    assert wire.header(b"connection") is None
    assert len(wire.incoming) == 1
