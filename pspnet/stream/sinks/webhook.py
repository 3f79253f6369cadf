"""Sink that sends every mask to an HTTP server."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import numpy as np
from urllib3.exceptions import HTTPError

from pspnet.client.http_client import HttpClient, cause_of
from pspnet.errors import ConfigError
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.writer import head_of
from pspnet.stream.sinks.base import SinkContext, SinkError, without_secrets
from pspnet.stream.sinks.mask_files import png_file

FORMATS = ("png", "json")
MAX_WAIT = 60.0
"""Maximum seconds of a server's Retry-After."""

_TEMPORARY = (408, 425, 429)
_READ = 65_536  # bytes read of a response
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class WebhookSink:
    """HTTP POST of every mask: its PNG file, or JSON with the pixel counts of the classes.

    Every request has the headers X-Pspnet-Frame, X-Pspnet-Captured and X-Pspnet-Timestamp, which identify an item that
    is sent twice because a response was lost. Status 2xx accepts the item. Redirects are not followed, since they could
    leak masks and secrets to another server.

    Settings of the context:
        webhook_send: png or json (default: png).
        webhook_timeout: timeout in seconds of connecting and of each read (default: 10).
        webhook_headers: NAME: VALUE, separated by semicolons; ${VARIABLE} in a value is read from the environment, so
            that a secret is visible neither on a command line nor in a process list.
    """

    durable, wants_images = True, False

    def __init__(self, url: str, context: SinkContext) -> None:
        """The connection is opened with the first item. Raises ConfigError for an invalid URL or setting."""
        parts, settings = urlsplit(url), context.settings
        try:
            parts.port  # noqa: B018  (raises for an invalid one)
        except ValueError as error:
            raise ConfigError(f"{without_secrets(url)}: invalid port; expected 0 to 65535.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{without_secrets(url)}: not a URL; expected http://HOST/PATH or https://HOST/PATH.")
        if parts.username or parts.password:
            raise ConfigError("The webhook URL has a password; use webhook_headers=Authorization: ${TOKEN} instead.")
        self._url = url
        # A query may contain a key, so the name has its hash, which distinguishes sinks.
        query = f" [query {hashlib.sha256(parts.query.encode()).hexdigest()[:8]}]" if parts.query else ""
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
        self._context = context
        self._format = settings.get("webhook_send", "png")
        if self._format not in FORMATS:
            raise ConfigError(f"webhook_send: found {self._format!r}; expected png or json.")
        self._http = HttpClient(_seconds(settings.get("webhook_timeout", "10")))
        self._headers = read_headers(settings.get("webhook_headers", ""), os.environ)
        self._not_before = 0.0

    def write(self, item: MaskedFrame) -> None:
        """Send a mask. Raises SinkError, temporary for connection errors and status 5xx, 408, 425 and 429."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            raise SinkError(f"{self.name}: rate limited by Retry-After for another {wait:.0f} s.", temporary=True)
        head = head_of(item)
        headers = {
            **self._headers,
            "Content-Type": "image/png" if self._format == "png" else "application/json",
            "User-Agent": "pspnet",
            "X-Pspnet-Frame": str(head.frame),
            "X-Pspnet-Captured": f"{head.captured:.6f}",
            "X-Pspnet-Timestamp": f"{head.timestamp:.6f}",
        }
        body = png_file(item, self._context) if self._format == "png" else summary_json(item, self._context.class_names)
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


def summary_json(item: MaskedFrame, class_names: tuple[str, ...]) -> bytes:
    """Encode a mask as JSON: frame, times, labels, size, and id, name, pixels and fraction of every class in it."""
    head, counts = head_of(item), np.bincount(item.mask.ravel(), minlength=256)
    classes = [
        {
            "id": int(class_id),
            "name": class_names[class_id] if class_id < len(class_names) else f"class_{class_id}",
            "pixels": int(counts[class_id]),
            "share": round(float(counts[class_id]) / item.mask.size, 6),
        }
        for class_id in np.flatnonzero(counts)
    ]
    height, width = item.mask.shape
    about = {"frame": head.frame, "captured": head.captured, "timestamp": head.timestamp, "labels": head.labels}
    return json.dumps({**about, "width": width, "height": height, "classes": classes}).encode()


def read_headers(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Parse `NAME: VALUE; NAME: VALUE` and expand ${VARIABLE}. Raises ConfigError, which never contains a value."""
    headers = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = part.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name.strip()):
            raise ConfigError("webhook_headers: invalid header; expected NAME: VALUE, separated by semicolons.")
        missing = [variable for variable in _VARIABLE.findall(value) if variable not in environment]
        if missing:
            raise ConfigError(f"webhook_headers: the environment variable {missing[0]} is not set.")
        value = _VARIABLE.sub(lambda found: environment[found[1]], value).strip()
        if not value.isascii() or not value.isprintable():
            raise ConfigError(f"webhook_headers: the value of {name.strip()} has characters not allowed in a header.")
        headers[name.strip()] = value
    return headers


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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:
        raise ConfigError(f"webhook_timeout: found {text!r}; expected seconds above 0, up to 600.")
    return value
