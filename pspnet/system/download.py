"""Download one large file over HTTP: resumed where it stopped, retried where it may help, checked by its MD5."""

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

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_TRANSIENT_ERRORS = (urllib.error.URLError, ConnectionError, socket.timeout, http.client.HTTPException)


class _InterruptedError(Exception):
    """The transfer stopped for a reason that a further attempt may not meet."""


def download(
    url: str, destination: Path, md5: str | None, progress: bool = True, attempts: int = 5, backoff: float = 1.0
) -> Path:
    """Fetch `url` into the file `destination`, whose MD5 must be `md5` (None: not known); returns `destination`.

    Bytes arrive in `<destination>.part`, which a later call continues by an HTTP range request (from the start where
    the server ignores ranges). A stalled or cut transfer is tried again up to `attempts` times without progress, after
    `backoff`, 2 `backoff`, 4 `backoff` ... seconds. A finished file is never downloaded twice. Raises DataError for
    anything that stops it; only a wrong checksum removes what has arrived.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: cannot be downloaded; expected an address that starts with http:// or https://.")
    if destination.exists():
        return _check_present(destination, md5)
    part = destination.with_name(destination.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_all(url, part, progress, attempts, backoff)
        found = None if md5 is None else file_md5(part)
        if md5 is not None and found != md5.lower():
            part.unlink()
            raise DataError(
                f"{url}: the downloaded file has MD5 {found}, expected {md5}. It was removed: run the command again "
                "or give another address."
            )
        os.replace(part, destination)
    except OSError as error:
        raise DataError(
            f"{part}: cannot be written ({error.strerror or error}). Free some space or choose a folder that you may "
            "write to; what has arrived is kept, and the same command resumes."
        ) from error
    return destination


def file_md5(path: Path) -> str:
    """The MD5 of a file as 32 hexadecimal digits; it guards against damage, not against forgery."""
    digest = hashlib.md5()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _check_present(destination: Path, md5: str | None) -> Path:
    if not destination.is_file():
        raise DataError(f"{destination}: is a folder; expected the name of the file to write.")
    found = None if md5 is None else file_md5(destination)
    if md5 is not None and found != md5.lower():
        raise DataError(
            f"{destination}: exists and has MD5 {found}, expected {md5}. Remove the file and run the command again."
        )
    return destination


def _fetch_all(url: str, part: Path, progress: bool, attempts: int, backoff: float) -> None:
    """Attempts until the file is complete; the count starts anew whenever bytes arrived."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch_once(url, part, progress)
            return
        except _InterruptedError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise DataError(
                    f"{url}: the download stopped after {_size(part):,} bytes ({error}), {failures} attempts in a row "
                    f"failed. They are kept in {part}: run the same command again to resume, or fetch the file by "
                    "other means."
                ) from error
            time.sleep(backoff * 2 ** (failures - 1))


@dataclass(frozen=True)
class _Answer:
    """Where the body of a response belongs in the file, and how long the whole file is (None: not said)."""

    start: int
    total: int | None


def _fetch_once(url: str, part: Path, progress: bool) -> None:
    """One request, from the end of `part` on; returns when the file is complete, else raises _InterruptedError."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "pspnet", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                _end_of_range(part, have, error.headers.get("Content-Range", ""))
                return
            if error.code in _RETRIED_STATUSES:
                raise _InterruptedError(f"HTTP {error.code} {error.reason}") from error
            raise DataError(
                f"{url}: the server answered HTTP {error.code} {error.reason}. Check the address, or give another one."
            ) from error
    except _TRANSIENT_ERRORS as error:
        raise _InterruptedError(_reason(error)) from error
    with response:
        answer = _placement(response, have)
        _check_space(part, answer)
        _receive(response, part, answer, progress)


def _end_of_range(part: Path, have: int, content_range: str) -> None:
    """HTTP 416: nothing is left to send. Either the part is complete, or it belongs to another file."""
    if content_range == f"bytes */{have}":
        return
    part.unlink()
    raise _InterruptedError("what had arrived did not fit the file on the server")


def _placement(response: Any, have: int) -> _Answer:
    length = response.headers.get("Content-Length")
    body = int(length) if length is not None and length.isdigit() else None
    if response.status == 206:
        start, _, total = response.headers.get("Content-Range", "").replace("bytes ", "").partition("/")
        if start.split("-")[0] == str(have):
            return _Answer(have, int(total) if total.isdigit() else None)
        raise _InterruptedError(f"the server sent the range {start!r}, asked for was {have}-")
    return _Answer(0, body)  # the server ignores ranges: begin again


def _check_space(part: Path, answer: _Answer) -> None:
    if answer.total is None:
        return
    # Beginning again overwrites the part, so its bytes are not needed twice.
    needed, free = answer.total - _size(part), shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{part.parent}: {needed:,} more bytes are needed and {free:,} are free. Free some space or choose another "
            "folder."
        )


def _receive(response: IO[bytes], part: Path, answer: _Answer, progress: bool) -> None:
    position = answer.start
    bar = tqdm(
        total=answer.total,
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
                raise _InterruptedError(_reason(error)) from error
            if not chunk:
                break
            stream.write(chunk)
            position += len(chunk)
            bar.update(len(chunk))
    if answer.total is not None and position < answer.total:
        # http.client reports a connection cut between two reads as a plain end of the body.
        raise _InterruptedError(f"the connection ended at byte {position:,} of {answer.total:,}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(inner) or type(inner).__name__
