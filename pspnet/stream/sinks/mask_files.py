"""Sinks that keep masks: a folder, and a prefix on S3. As segments with an index, or as one PNG file a mask.

What these sinks take is on the disk of this machine before write() returns, so that a killed process loses nothing; a
loss of power may cost what the system had not yet brought to the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pspnet.errors import ConfigError
from pspnet.masks.codec import encode_png
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.reader import PNG_KEYWORD
from pspnet.masks.segment import PNG_SUFFIX, SUFFIX, SegmentHeader, mask_name, read_name
from pspnet.masks.storage import split_uri
from pspnet.masks.writer import SegmentFolder, SegmentSettings, head_of, read_settings
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.spill_folder import folder_name
from pspnet.system.atomic_files import atomic_write

CONTENT_TYPE = "application/vnd.pspnet.masks"
"""Of segments on S3."""

_TRIES = 1000


def png_file(item: MaskedFrame, context: SinkContext) -> bytes:
    """A PNG file of the mask in the classes' colours, with the frame's number, times and labels in it."""
    head = head_of(item)
    about: dict[str, Any] = {"frame": head.frame, "captured": head.captured, "timestamp": head.timestamp}
    about["labels"] = head.labels
    if not math.isnan(head.latency):
        about["latency"] = round(head.latency, 6)
    return encode_png(item.mask, context.palette, texts={PNG_KEYWORD: json.dumps(about)})


class FolderSink:
    """Masks in a folder. Files that are there stay; segments that a killed process left open are completed."""

    durable, wants_images = True, False

    def __init__(self, folder: Path, context: SinkContext, settings: SegmentSettings | None = None) -> None:
        """Settings are those of the context if not given. Raises SinkError for a folder that cannot be written."""
        self.name = str(folder)
        self._folder, self._context = folder, context
        self._settings = read_settings(context.settings) if settings is None else settings
        about = SegmentHeader(0, 0, context.class_names, context.palette, source=context.source)
        try:
            self._segments = SegmentFolder(folder, self._settings, about)
        except OSError as error:
            raise SinkError(f"{folder}: masks cannot be kept here ({error.strerror or error}).", False) from error

    def write(self, item: MaskedFrame) -> None:
        """Add the mask to the open segment, or write its file."""
        try:
            if self._settings.encoding == "files":
                self._write_file(item)
            else:
                self._segments.append(item)
        except OSError as error:
            raise self._error(error) from error

    def _write_file(self, item: MaskedFrame) -> None:
        content, head = png_file(item, self._context), head_of(item)
        for again in range(_TRIES):
            path = self._folder / mask_name(head, None, PNG_SUFFIX, again)
            if path.exists():
                if path.read_bytes() == content:
                    return
                continue
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            return

    def flush(self) -> None:
        """End the open segment, so that it is whole and has its index."""
        try:
            self._segments.finish()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """The same as flush."""
        self.flush()

    def _error(self, error: OSError) -> SinkError:
        # A full disk, a share that is gone: worth another try, since nothing else can be known about them.
        return SinkError(f"{self._folder}: cannot be written ({error.strerror or error}).", temporary=True)


class S3Sink:
    """Masks under s3://BUCKET/PREFIX. A segment is sent when it is full, and waits on this machine until it is there.

    Keys are PREFIX/NAME, with the names of pspnet.masks.segment.mask_name. No object is replaced. What waits is in
    a folder of its own (setting `s3_spool`, default ./pspnet-spool); what a killed process left there is sent first.
    """

    durable, wants_images = True, False

    def __init__(
        self,
        uri: str,
        context: SinkContext,
        settings: SegmentSettings | None = None,
        client: Any = None,
        spool: Path | None = None,
    ) -> None:
        """Settings are those of the context, and the client boto3's, if not given.

        Raises PspnetError for an address without bucket, a missing boto3, or a spool that cannot be written.
        """
        self.name = uri
        self._bucket, self._prefix = split_uri(uri)
        self._context = context
        self._settings = read_settings(context.settings) if settings is None else settings
        self._client = _s3_client(uri, context) if client is None else client
        base = Path(context.settings.get("s3_spool", "pspnet-spool")) if spool is None else spool
        # The same for s3://BUCKET/PREFIX and s3://BUCKET/PREFIX/, and another one for any other place.
        self._spool = base / folder_name(f"s3://{self._bucket}/{self._prefix}")
        about = SegmentHeader(0, 0, context.class_names, context.palette, source=context.source)
        try:
            self._segments = SegmentFolder(self._spool, self._settings, about)
        except OSError as error:
            raise SinkError(f"{self._spool}: masks cannot wait here ({error.strerror or error}).", False) from error

    def write(self, item: MaskedFrame) -> None:
        """Add the mask to the open segment; before that, send what waits. Or send the mask's file."""
        if self._settings.encoding == "files":
            head = head_of(item)
            self._put(mask_name(head, None, PNG_SUFFIX), png_file(item, self._context))
            return
        try:
            if self._segments.full(item):
                self._segments.finish()
            # Before the item is taken: where this fails, it comes again.
            self._send_waiting()
            self._segments.append(item)
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot be written ({error.strerror or error}).", True) from error

    def flush(self) -> None:
        """End the open segment and send everything."""
        try:
            self._segments.finish()
            self._send_waiting()
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot be written ({error.strerror or error}).", True) from error

    def close(self) -> None:
        """Leave what could not be sent where it waits, and say so. Raises SinkError if there is any."""
        try:
            self._segments.finish()
            waiting = self._waiting()
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot be written ({error.strerror or error}).", True) from error
        if waiting:
            raise SinkError(
                f"{self.name}: {len(waiting)} segments wait in {self._spool}; they go first at the next start from the "
                "same folder.",
                temporary=True,
            )
        with suppress(OSError):  # not empty, or shared with other prefixes
            self._spool.rmdir()
            self._spool.parent.rmdir()

    def _waiting(self) -> list[Path]:
        return sorted(self._spool.glob(f"*{SUFFIX}"))

    def _send_waiting(self) -> None:
        for path in self._waiting():
            with suppress(FileNotFoundError):  # another stream to the same prefix has sent it
                self._put(path.name, path.read_bytes())
                path.unlink()

    def _put(self, name: str, content: bytes) -> None:
        """Store an object under its name, or the next one that is free. Raises SinkError."""
        said = read_name(name)
        assert said is not None
        digest = hashlib.sha256(content).hexdigest()
        last = said.last_captured if said.last_captured is not None else said.captured
        metadata = {"sha256": digest, "captured-from": f"{said.captured:.6f}", "captured-to": f"{last:.6f}"}
        stem, suffix = os.path.splitext(name)
        for again in range(_TRIES):
            key = f"{self._prefix}/" * bool(self._prefix) + stem + (f".{again}" if again else "") + suffix
            if self._put_new(key, content, metadata) or self._holds(key, digest):
                return
        raise SinkError(f"{self.name}: there are {_TRIES} objects of the name {name}.", temporary=False)

    def _put_new(self, key: str, content: bytes, metadata: dict[str, str]) -> bool:
        """Whether the object was stored; False where the key has one already."""
        from botocore.exceptions import BotoCoreError, ClientError

        kind = CONTENT_TYPE if key.endswith(SUFFIX) else "image/png"
        try:
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=content, ContentType=kind, Metadata=metadata, IfNoneMatch="*"
            )
        except (BotoCoreError, ClientError) as error:
            if _code(error) in ("PreconditionFailed", "412"):
                return False
            raise _as_sink_error(f"s3://{self._bucket}/{key}", error) from error
        return True

    def _holds(self, key: str, digest: str) -> bool:
        """Whether the object is the one that was to be stored: an answer that got lost on its way back."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.head_object(Bucket=self._bucket, Key=key)
        except (BotoCoreError, ClientError):  # a role that may only write: at worst the masks are there twice
            return False
        return bool(found.get("Metadata", {}).get("sha256") == digest)


def _s3_client(uri: str, context: SinkContext) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ConfigError(f"{uri}: S3 needs boto3, which is not installed; run `pip install boto3`.") from error
    # The delivery tries again, later each time, and says so; a client that does so too would only hide it.
    config = Config(connect_timeout=10, read_timeout=60, retries={"total_max_attempts": 2})
    try:
        session = boto3.Session(profile_name=context.profile, region_name=context.region)
        return session.client("s3", endpoint_url=context.aws_endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"{uri}: {' '.join(str(error).split())}.") from error


_PASSING = (
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError",
    "ServiceUnavailable", "BandwidthLimitExceeded", "OperationAborted", "ConditionalRequestConflict",
    "RequestTimeTooSkewed", "ExpiredToken", "ExpiredTokenException", "503 Slow Down",
)  # fmt: skip
# What botocore finds by itself and no waiting mends.
_LASTING = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError", "ProfileNotFound")


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _as_sink_error(where: str, error: Exception) -> SinkError:
    """An error of S3 or on the way to it: temporary, unless it is the request or a right that is wrong."""
    response: dict[str, Any] = getattr(error, "response", {})
    if not response:  # no answer: no connection, a time limit
        temporary = type(error).__name__ not in _LASTING
    else:
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
        temporary = status >= 500 or status == 429 or _code(error) in _PASSING
    return SinkError(f"{where}: was not stored ({' '.join(str(error).split())}).", temporary)
