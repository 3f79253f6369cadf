"""Transport protocol of an endpoint client, and its HTTP implementation on keep-alive connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from pspnet.errors import PspnetError

# Longer than SageMaker's limit of 60 seconds per request, so that the endpoint's own error comes first.
TIMEOUT = 70.0


class EndpointError(PspnetError):
    """An endpoint's error answer as one sentence; `status` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(message)


@dataclass(frozen=True)
class Reply:
    """An endpoint's answer."""

    body: bytes
    content_type: str


class Transport(Protocol):
    """Thread-safe connection to an endpoint."""

    @property
    def largest(self) -> int | None:
        """Largest body in bytes, None if unknown."""

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        """Send one request without retries. Raises EndpointError."""

    def close(self) -> None:
        """Close all connections."""


class HttpTransport:
    """HTTP connections to a server of SageMaker's container protocol: `pspnet serve`, or a local container."""

    largest: int | None = None

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self.url = url.rstrip("/")
        self._address = _checked(self.url)
        self._timeout = timeout
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        path = self._address.path.rstrip("/")
        self._path = path if path.endswith("/invocations") else f"{path}/invocations"

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        headers = {"Content-Type": content_type, "Accept": accept}
        connection, reused = self._acquire()
        try:
            answer, content = self._exchange(connection, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            connection.close()
            if not reused:
                raise self._lost(error) from error
            # The server may close an idle connection. Requests are idempotent, so retry on a new one.
            connection = self._open()
            try:
                answer, content = self._exchange(connection, body, headers)
            except (OSError, http.client.HTTPException) as again:
                connection.close()
                raise self._lost(again) from again
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._lost(error) from error
        if answer.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        if answer.status != 200:
            raise _refusal(self.url, answer, content)
        return Reply(content, answer.getheader("Content-Type", ""))

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A server may refuse a body before it has read all of it.
            connection.request("POST", self._path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def _acquire(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        return self._open(), False

    def _open(self) -> http.client.HTTPConnection:
        secure = self._address.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = make(self._address.hostname or "", self._address.port, timeout=self._timeout)
        try:
            connection.connect()
            # With Nagle's algorithm the body would wait for the acknowledgement of the headers.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            raise self._lost(error) from error
        return connection

    def _lost(self, error: Exception) -> EndpointError:
        if isinstance(error, TimeoutError):
            reason = f"it did not answer within {self._timeout:g} seconds"
        elif isinstance(error, ConnectionRefusedError):
            reason = "connection refused; start the server with `pspnet serve MODEL_DIR`, or give another URL"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        return EndpointError(f"{self.url}: {reason}.")

    def close(self) -> None:
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()


def _checked(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        usable = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or address.username or address.query or address.fragment:
        raise PspnetError(f"{url}: not the URL of an endpoint; expected http://HOST:PORT.")
    return address


def _refusal(url: str, answer: http.client.HTTPResponse, content: bytes) -> EndpointError:
    message = error_text(content) or answer.reason
    wait = answer.getheader("Retry-After", "")
    retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
    return EndpointError(f"{url} answered {answer.status}: {message}", answer.status, retry_after)


def error_text(content: bytes, longest: int = 500) -> str:
    """Return an endpoint's error body as one line of text. TorchServe wraps its own errors in JSON."""
    text = content.decode("utf-8", errors="replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        text = str(value.get("message") or value.get("detail") or value.get("error") or text)
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]} ..."
