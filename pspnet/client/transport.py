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

# Longer than the 60 seconds that SageMaker gives a model, so that the endpoint's own answer comes first.
TIMEOUT = 70.0


class EndpointError(PspnetError):
    """What an endpoint answered instead of a mask, as one sentence; `status` is its HTTP status, 0 for none."""

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
    """A way to an endpoint, usable from several threads."""

    @property
    def largest(self) -> int | None:
        """Bytes of the largest body that it carries, if that is known."""

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        """One request, without another try. Raises EndpointError."""

    def close(self) -> None:
        """Close what is open."""


class HttpTransport:
    """A server that speaks SageMaker's container protocol: `pspnet serve`, or a container on this machine."""

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
        connection, kept = self._take()
        try:
            answer, content = self._exchange(connection, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            connection.close()
            if not kept:
                raise self._lost(error) from error
            # The server may close a connection that was idle; a mask is the same however often it is asked for.
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
            # A server that refuses a body answers before it has read all of it.
            connection.request("POST", self._path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
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
            # Otherwise the body may wait for the acknowledgement of the headers.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            raise self._lost(error) from error
        return connection

    def _lost(self, error: Exception) -> EndpointError:
        if isinstance(error, TimeoutError):
            reason = f"it did not answer within {self._timeout:g} seconds"
        elif isinstance(error, ConnectionRefusedError):
            reason = "nothing listens there; start it with `pspnet serve MODEL_DIR`, or give another address"
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
        raise PspnetError(f"{url}: is no address of an endpoint; expected http://HOST:PORT.")
    return address


def _refusal(url: str, answer: http.client.HTTPResponse, content: bytes) -> EndpointError:
    said = sentence_of(content) or answer.reason
    wait = answer.getheader("Retry-After", "")
    retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
    return EndpointError(f"{url} answered {answer.status}: {said}", answer.status, retry_after)


def sentence_of(content: bytes, longest: int = 500) -> str:
    """An endpoint's error body as one line of text. TorchServe wraps its own errors into JSON."""
    text = content.decode("utf-8", errors="replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        text = str(value.get("message") or value.get("detail") or value.get("error") or text)
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]} ..."
