"""Resumable HTTP download of one large file, with retries and a checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pspnet.errors import DataError
from pspnet.system.backoff import Backoff

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 60.0
_RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_TRANSIENT_ERRORS = (urllib.error.URLError, ConnectionError, socket.timeout, http.client.HTTPException)


class _TransientError(Exception):
    """A transient failure of the transfer, worth a retry."""


def download(
    url: str, destination: Path, checksum: str | None, progress: bool = True, attempts: int = 5, backoff: float = 1.0
) -> Path:
    """Download `url` to the file `destination` and return it.

    `checksum` is its MD5, "sha256:" and the first digits of its SHA-256, or None for an unknown one.

    Bytes are written to `<destination>.part`, which a later call resumes with an HTTP range request (or restarts if the
    server ignores ranges). A stalled or interrupted transfer is retried up to `attempts` times without progress, with
    exponential backoff and jitter from `backoff` seconds on. A complete file is not downloaded again.

    Raises DataError on failure; only a wrong checksum removes the partial file.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: cannot be downloaded; expected a URL that starts with http:// or https://.")
    if destination.exists():
        return _check_present(destination, checksum)
    part = destination.with_name(destination.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_all(url, part, progress, attempts, backoff)
        wrong = _wrong_checksum(part, checksum)
        if wrong:
            part.unlink()
            raise DataError(
                f"{url}: the downloaded file has {wrong}. It was removed: run the command again or give another URL."
            )
        os.replace(part, destination)
    except OSError as error:
        raise DataError(
            f"{part}: cannot be written ({error.strerror or error}). Free some space or choose a writable folder; "
            "the partial file is kept, and the same command resumes."
        ) from error
    return destination


def file_digest(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file by an algorithm of hashlib."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _wrong_checksum(path: Path, checksum: str | None) -> str | None:
    """Describe the checksum of a file if it is not the expected one."""
    algorithm, _, expected = (checksum or "").lower().rpartition(":")
    found = file_digest(path, algorithm or "md5") if expected else ""
    return None if found.startswith(expected) else f"{(algorithm or 'md5').upper()} {found}, expected {expected}"


def _check_present(destination: Path, checksum: str | None) -> Path:
    if not destination.is_file():
        raise DataError(f"{destination}: is a folder; expected the name of the file to write.")
    wrong = _wrong_checksum(destination, checksum)
    if wrong:
        raise DataError(f"{destination}: exists and has {wrong}. Remove the file and run the command again.")
    return destination


def _fetch_all(url: str, part: Path, progress: bool, attempts: int, backoff: float) -> None:
    """Fetch until the file is complete; progress resets the count of failures."""
    failures, delays = 0, Backoff(backoff, _LONGEST_WAIT_SECONDS)
    while True:
        before = _size(part)
        try:
            _fetch_once(url, part, progress)
            return
        except _TransientError as error:
            if _size(part) > before:
                failures = 0
                delays.reset()
            failures += 1
            if failures >= attempts:
                raise DataError(
                    f"{url}: the download stopped after {_size(part):,} bytes ({error}), {failures} attempts in a row "
                    f"failed. Run the same command again to resume, or download the file by other means and save it as "
                    f"{part.with_suffix('')}."
                ) from error
            time.sleep(delays.next())


@dataclass(frozen=True)
class _BodyRange:
    """File offset of a response's body, and the file's total size (None: unknown)."""

    start: int
    total: int | None


def _fetch_once(url: str, part: Path, progress: bool) -> None:
    """One request from the end of `part` on; raises _TransientError unless it completes the file."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "pspnet", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                _check_unsatisfiable_range(part, have, error.headers.get("Content-Range", ""))
                return
            if error.code in _RETRIED_STATUSES:
                raise _TransientError(f"HTTP {error.code} {error.reason}") from error
            raise DataError(
                f"{url}: the server returned HTTP {error.code} {error.reason}. Check the URL, or give another one."
            ) from error
    except _TRANSIENT_ERRORS as error:
        raise _TransientError(_reason(error)) from error
    with response:
        body = _body_range(response, have)
        _check_space(part, body)
        _receive(response, part, body, progress)


def _check_unsatisfiable_range(part: Path, have: int, content_range: str) -> None:
    """Handle HTTP 416: the part is either complete, or belongs to another file."""
    if content_range == f"bytes */{have}":
        return
    part.unlink()
    raise _TransientError("the partial file did not match the file on the server")


def _body_range(response: Any, have: int) -> _BodyRange:
    length = response.headers.get("Content-Length")
    size = int(length) if length is not None and length.isdigit() else None
    if response.status == 206:
        start, _, total = response.headers.get("Content-Range", "").replace("bytes ", "").partition("/")
        if start.split("-")[0] == str(have):
            return _BodyRange(have, int(total) if total.isdigit() else None)
        raise _TransientError(f"the server sent the range {start!r}, requested was {have}-")
    return _BodyRange(0, size)  # the server ignores ranges: restart


def _check_space(part: Path, body: _BodyRange) -> None:
    if body.total is None:
        return
    # A restart overwrites the part, so its bytes are not needed twice.
    needed, free = body.total - _size(part), shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{part.parent}: {needed:,} more bytes are needed and {free:,} are free. Free some space or choose another "
            "folder."
        )


def _receive(response: IO[bytes], part: Path, body: _BodyRange, progress: bool) -> None:
    position = body.start
    bar = tqdm(
        total=body.total,
        initial=position,
        unit="B",
        unit_scale=True,
        desc=part.stem,
        disable=None if progress else True,
    )
    with part.open("ab" if position else "wb") as stream, bar:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _TransientError(_reason(error)) from error
            if not chunk:
                break
            stream.write(chunk)
            position += len(chunk)
            bar.update(len(chunk))
    if body.total is not None and position < body.total:
        # http.client reports a connection cut between two reads as a plain end of the body.
        raise _TransientError(f"the connection ended at byte {position:,} of {body.total:,}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(inner) or type(inner).__name__
