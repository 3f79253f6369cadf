"""HTTP request and answer on plain ASGI: headers, size and time limits for the body, errors as plain sentences.

Starlette's request and response classes would cost more than the rest of this server.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pspnet.serving.protocol.request_error import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TEXT = "text/plain; charset=utf-8"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WANTED = {
    b"accept", b"content-encoding", b"content-length", b"content-type", b"x-amzn-sagemaker-custom-attributes",
    b"x-request-id",
}  # fmt: skip
# After an early answer, up to this much of the remaining body is read and discarded: a client that is still sending
# would otherwise see a connection reset instead of the answer.
_DRAIN_BYTES = 64_000_000
_DRAIN_SECONDS = 5.0


class ClientGoneError(Exception):
    """The client has disconnected."""


class Exchange:
    """HTTP request and its answer.

    headers: the headers that serving uses, with lower-case names; repeated ones are joined by commas.
    received, sent: bytes of the bodies. status: of the answer, 0 before it.
    """

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.started = time.perf_counter()
        self._receive, self._send = receive, send
        self.method, self.path = scope["method"], scope["path"]
        self.headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name in _WANTED:
                key, text = name.decode("latin-1"), value.decode("latin-1")
                self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        given = self.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.status = self.received = self.sent = 0
        self._body_read = False

    async def read_body(self, limit: int, seconds: float, hold: Callable[[int], None]) -> bytes:
        """Read the body of the request.

        Args:
            limit: largest number of bytes, enforced while they arrive, whatever Content-Length is.
            seconds: timeout for the complete body.
            hold: called with the size of every chunk; may raise to reject it.

        Raises RequestError 408 or 413, ClientGoneError, and whatever `hold` raises.
        """
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise RequestError(413, f"The body has {int(announced):,} bytes; this endpoint accepts at most {limit:,}.")
        first = await self._chunk(limit, hold)
        if self._body_read:  # the usual case: a small image arrives with its headers
            return first
        try:
            return await asyncio.wait_for(self._rest(first, limit, hold), seconds)
        except asyncio.TimeoutError:
            raise RequestError(408, f"The body did not arrive within {seconds:g} seconds; send it faster.") from None

    async def _rest(self, first: bytes, limit: int, hold: Callable[[int], None]) -> bytes:
        chunks = [first]
        while not self._body_read:
            chunks.append(await self._chunk(limit, hold))
        return b"".join(chunks)

    async def _chunk(self, limit: int, hold: Callable[[int], None]) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        self._body_read = not message.get("more_body", False)
        self.received += len(chunk)
        hold(len(chunk))
        if self.received > limit:
            raise RequestError(413, f"The body is larger than the {limit:,} bytes that this endpoint accepts.")
        return chunk

    async def gone(self) -> None:
        """Wait until the client disconnects. For requests whose body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, media_type: str, headers: tuple[tuple[str, str], ...] = (), close: bool = False
    ) -> None:
        """Send the answer. An unread body is then drained within limits, and the connection closed."""
        unread = not self._body_read and self.method not in ("GET", "HEAD")
        fields = [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self.request_id.encode()),
            *((name.encode(), value.encode("latin-1")) for name, value in headers),
        ]
        if unread or close:
            fields.append((b"connection", b"close"))
        self.status, self.sent = status, len(body)
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        if unread:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._drain()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _drain(self) -> None:
        async def drop() -> None:
            dropped = 0
            while not self._body_read and dropped < _DRAIN_BYTES:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    return
                dropped += len(message.get("body", b""))
                self._body_read = not message.get("more_body", False)

        try:
            await asyncio.wait_for(drop(), _DRAIN_SECONDS)
        except asyncio.TimeoutError:
            return
