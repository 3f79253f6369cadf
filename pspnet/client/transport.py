"""Transport protocol of an endpoint client, and its HTTP implementation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from pspnet.client.http_client import HttpClient, cause_of
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
        address = _checked(self.url)
        path = address.path.rstrip("/")
        path = path if path.endswith("/invocations") else f"{path}/invocations"
        self._target = f"{address.scheme}://{address.netloc}{path}"
        self._timeout = timeout
        self._http = HttpClient(timeout)

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        headers = {"Content-Type": content_type, "Accept": accept}
        try:
            answer, content = self._http.post(self._target, body, headers)
        except HTTPError as error:
            raise self._lost(error) from error
        if answer.status != 200:
            raise _refusal(self.url, answer, content)
        return Reply(content, answer.headers.get("Content-Type", ""))

    def _lost(self, error: HTTPError) -> EndpointError:
        cause = cause_of(error)
        if isinstance(cause, TimeoutError):
            reason = f"it did not answer within {self._timeout:g} seconds"
        elif isinstance(cause, ConnectionRefusedError):
            reason = "connection refused; start the server with `pspnet serve MODEL_DIR`, or give another URL"
        else:
            reason = " ".join(str(cause).split()) or type(cause).__name__
        return EndpointError(f"{self.url}: {reason}.")

    def close(self) -> None:
        self._http.close()


def _checked(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        usable = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or address.username or address.query or address.fragment:
        raise PspnetError(f"{url}: not the URL of an endpoint; expected http://HOST:PORT.")
    return address


def _refusal(url: str, answer: BaseHTTPResponse, content: bytes) -> EndpointError:
    message = error_text(content) or answer.reason or ""
    wait = answer.headers.get("Retry-After", "")
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
