"""Sink that sends every mask to an HTTP server."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import ssl
import time
from urllib.parse import SplitResult, urlsplit

from urllib3.exceptions import HTTPError

from pspnet.client.http_client import HttpClient, cause_of
from pspnet.errors import ConfigError
from pspnet.masks.class_counts import class_counts
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.writer import head_of, png_file
from pspnet.stream.sinks.base import SinkContext, SinkError, without_secrets

MAX_WAIT = 60.0
"""Maximum seconds of a server's Retry-After."""

_TEMPORARY = (408, 425, 429)
_READ = 65_536  # bytes read of a response


class WebhookSink:
    """HTTP POST of every mask: its PNG file, or JSON with the pixel counts of the classes.

    Every request has the headers X-Pspnet-Frame, X-Pspnet-Captured and X-Pspnet-Timestamp, which identify an item that
    is sent twice because a response was lost. Status 2xx accepts the item. Redirects are not followed, since they could
    leak masks and secrets to another server.
    """

    durable, spills = True, True

    def __init__(self, url: str, context: SinkContext) -> None:
        """The connection is opened with the first item. Raises ConfigError for an invalid URL or header."""
        _, self.name = split_url(url)
        self._url, self._context, self._settings = url, context, context.settings
        self._headers = self._settings.headers(os.environ)
        self._http = HttpClient(self._settings.webhook_timeout)
        self._not_before = 0.0

    def write(self, item: MaskedFrame) -> None:
        """Send a mask. Raises SinkError, temporary for connection errors and status 5xx, 408, 425 and 429."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            raise SinkError(f"{self.name}: rate limited by Retry-After for another {wait:.0f} s.", temporary=True)
        head = head_of(item)
        headers = {
            **self._headers,
            "Content-Type": "image/png" if self._settings.webhook_send == "png" else "application/json",
            "User-Agent": "pspnet",
            "X-Pspnet-Frame": str(head.frame),
            "X-Pspnet-Captured": f"{head.captured:.6f}",
            "X-Pspnet-Timestamp": f"{head.timestamp:.6f}",
        }
        body = (
            png_file(item, self._context.palette)
            if self._settings.webhook_send == "png"
            else summary_json(item, self._context.class_names)
        )
        status, retry_after = self._post(body, headers)
        if 200 <= status < 300:
            return
        temporary = status >= 500 or status in _TEMPORARY
        if temporary and retry_after is not None:
            self._not_before = time.monotonic() + min(MAX_WAIT, retry_after)
        hint = "; redirects are not followed, use the target URL" if 300 <= status < 400 else ""
        raise SinkError(f"{self.name}: the server returned {status} for frame {head.frame}{hint}.", temporary)

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, float | None]:
        """Return status and seconds of Retry-After."""
        try:
            response, _ = self._http.post(self._url, body, headers, longest=_READ)
        except HTTPError as error:
            cause = cause_of(error)
            permanent = isinstance(cause, ssl.SSLCertVerificationError)
            reason = " ".join(str(cause).split()) or type(cause).__name__
            raise SinkError(f"{self.name}: cannot be reached ({reason}).", temporary=not permanent) from error
        return response.status, read_retry_after(response.headers.get("Retry-After"))

    def flush(self) -> None:
        """See Sink. write() returns after the response."""

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def split_url(url: str) -> tuple[SplitResult, str]:
    """Return the parts of a webhook's URL, and a name without secrets. Raises ConfigError."""
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{without_secrets(url)}: invalid port; expected 0 to 65535.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{without_secrets(url)}: not a URL; expected http://HOST/PATH or https://HOST/PATH.")
    if parts.username or parts.password:
        raise ConfigError("The webhook URL has a password; use webhook_headers=Authorization: ${TOKEN} instead.")
    # A query may contain a key, so the name has its hash, which distinguishes sinks.
    query = f" [query {hashlib.sha256(parts.query.encode()).hexdigest()[:8]}]" if parts.query else ""
    return parts, f"{parts.scheme}://{parts.netloc}{parts.path}{query}"


def summary_json(item: MaskedFrame, class_names: tuple[str, ...]) -> bytes:
    """Encode a mask as JSON: frame, times, labels, size, and the class counts."""
    head, (height, width) = head_of(item), item.mask.shape
    about = {"frame": head.frame, "captured": head.captured, "timestamp": head.timestamp, "labels": head.labels}
    return json.dumps(
        {**about, "width": width, "height": height, "classes": class_counts(item.mask, class_names)}
    ).encode()


def read_retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header (seconds or a date); None if it is missing or invalid."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
