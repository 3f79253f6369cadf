"""HTTP requests over kept-alive connections, on urllib3."""

from __future__ import annotations

import urllib3
from urllib3.exceptions import ProtocolError

_CONNECTIONS = 64
"""Idle connections that are kept, for as many threads."""


class HttpClient:
    """POST requests without redirects over kept-alive connections. Thread-safe.

    urllib3 sets TCP_NODELAY, and reads the answer of a server that refuses a body before it has read all of it.
    """

    def __init__(self, timeout: float) -> None:
        """timeout: seconds of connecting and of each read."""
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, timeout=timeout, retries=False)

    def post(
        self, url: str, body: bytes, headers: dict[str, str], longest: int | None = None
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """Send one request; return the answer and its content. Raises urllib3's HTTPError.

        A request on a connection that the server has closed is repeated once, so requests must be idempotent. Of a
        content above `longest` bytes, the rest is dropped together with the connection.
        """
        for is_last in (False, True):
            try:
                answer = self._pool.request(
                    "POST", url, body=body, headers=headers, redirect=False, preload_content=False
                )
                content = answer.read(longest)
            except ProtocolError as error:
                if is_last or not isinstance(cause_of(error), ConnectionError):
                    raise
                continue
            if len(content) == longest:
                answer.close()
            answer.release_conn()
            return answer, content
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()


def cause_of(error: Exception) -> BaseException:
    """The error of the operating system or of TLS behind one of urllib3's."""
    inner = error.__cause__ or next((item for item in error.args if isinstance(item, Exception)), None)
    return error if inner is None else inner
