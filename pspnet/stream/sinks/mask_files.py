"""Sinks that store masks in a folder or on S3, as segments with an index or as one PNG file per mask.

write() returns after the item was passed to the operating system, so a killed process loses nothing; a power failure
may lose items that were not yet synced to disk.
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
"""Content type of segments on S3."""

_MAX_NAMES = 1000


def png_file(item: MaskedFrame, context: SinkContext) -> bytes:
    """Encode a mask as a PNG file with the class palette and the frame's number, times and labels."""
    head = head_of(item)
    about: dict[str, Any] = {"frame": head.frame, "captured": head.captured, "timestamp": head.timestamp}
    about["labels"] = head.labels
    if not math.isnan(head.latency):
        about["latency"] = round(head.latency, 6)
    return encode_png(item.mask, context.palette, texts={PNG_KEYWORD: json.dumps(about)})


class FolderSink:
    """Sink that stores masks in a folder. No file is overwritten; segments of a killed process are finished."""

    durable, wants_images = True, False

    def __init__(self, folder: Path, context: SinkContext, settings: SegmentSettings | None = None) -> None:
        """settings: default: those of the context. Raises SinkError if the folder cannot be written."""
        self.name = str(folder)
        self._folder, self._context = folder, context
        self._settings = read_settings(context.settings) if settings is None else settings
        template = SegmentHeader(0, 0, context.class_names, context.palette, source=context.source)
        try:
            self._segments = SegmentFolder(folder, self._settings, template)
        except OSError as error:
            raise SinkError(f"{folder}: cannot store masks here ({error.strerror or error}).", False) from error

    def write(self, item: MaskedFrame) -> None:
        """Append the mask to the open segment, or write its PNG file."""
        try:
            if self._settings.encoding == "files":
                self._write_file(item)
            else:
                self._segments.append(item)
        except OSError as error:
            raise self._error(error) from error

    def _write_file(self, item: MaskedFrame) -> None:
        content, head = png_file(item, self._context), head_of(item)
        for again in range(_MAX_NAMES):
            path = self._folder / mask_name(head, None, PNG_SUFFIX, again)
            if path.exists():
                if path.read_bytes() == content:
                    return
                continue
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            return

    def flush(self) -> None:
        """Finish the open segment."""
        try:
            self._segments.finish()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Finish the open segment."""
        self.flush()

    def _error(self, error: OSError) -> SinkError:
        # A full disk or a lost network share may recover, so the write is retried.
        return SinkError(f"{self._folder}: cannot be written ({error.strerror or error}).", temporary=True)


class S3Sink:
    """Sink that stores masks under s3://BUCKET/PREFIX. Segments are written to a local spool and uploaded when full.

    Keys are PREFIX/NAME, with the names of pspnet.masks.segment.mask_name. No object is overwritten. The spool (setting
    `s3_spool`, default ./pspnet-spool) has a subfolder per destination; its leftovers are uploaded first.
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
        """settings: default: those of the context. client: default: a boto3 client. spool: for tests.

        Raises PspnetError for a URI without bucket, a missing boto3, or a spool that cannot be written.
        """
        self.name = uri
        self._bucket, self._prefix = split_uri(uri)
        self._context = context
        self._settings = read_settings(context.settings) if settings is None else settings
        self._client = _s3_client(uri, context) if client is None else client
        base = Path(context.settings.get("s3_spool", "pspnet-spool")) if spool is None else spool
        # The same folder for s3://BUCKET/PREFIX and s3://BUCKET/PREFIX/, distinct for every other destination.
        self._spool = base / folder_name(f"s3://{self._bucket}/{self._prefix}")
        template = SegmentHeader(0, 0, context.class_names, context.palette, source=context.source)
        try:
            self._segments = SegmentFolder(self._spool, self._settings, template)
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot store masks here ({error.strerror or error}).", False) from error

    def write(self, item: MaskedFrame) -> None:
        """Upload finished segments and append the mask to the open one, or upload the mask's PNG file."""
        if self._settings.encoding == "files":
            head = head_of(item)
            self._put(mask_name(head, None, PNG_SUFFIX), png_file(item, self._context))
            return
        try:
            if self._segments.full(item):
                self._segments.finish()
            # Upload before accepting the item: if it fails, the item is retried.
            self._upload_spooled()
            self._segments.append(item)
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot be written ({error.strerror or error}).", True) from error

    def flush(self) -> None:
        """Finish the open segment and upload everything."""
        try:
            self._segments.finish()
            self._upload_spooled()
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot be written ({error.strerror or error}).", True) from error

    def close(self) -> None:
        """Finish the open segment. Raises SinkError if segments are left in the spool."""
        try:
            self._segments.finish()
            spooled = self._spooled()
        except OSError as error:
            raise SinkError(f"{self._spool}: cannot be written ({error.strerror or error}).", True) from error
        if spooled:
            raise SinkError(
                f"{self.name}: {len(spooled)} segments were not uploaded; they are in {self._spool}, and the next run "
                "with the same spool uploads them first.",
                temporary=True,
            )
        with suppress(OSError):  # not empty, or shared with other prefixes
            self._spool.rmdir()
            self._spool.parent.rmdir()

    def _spooled(self) -> list[Path]:
        return sorted(self._spool.glob(f"*{SUFFIX}"))

    def _upload_spooled(self) -> None:
        for path in self._spooled():
            with suppress(FileNotFoundError):  # another stream to the same prefix uploaded it
                self._put(path.name, path.read_bytes())
                path.unlink()

    def _put(self, name: str, content: bytes) -> None:
        """Store an object under its name, or the next free one. Raises SinkError."""
        parsed = read_name(name)
        assert parsed is not None
        digest = hashlib.sha256(content).hexdigest()
        last = parsed.last_captured if parsed.last_captured is not None else parsed.captured
        metadata = {"sha256": digest, "captured-from": f"{parsed.captured:.6f}", "captured-to": f"{last:.6f}"}
        stem, suffix = os.path.splitext(name)
        for again in range(_MAX_NAMES):
            key = f"{self._prefix}/" * bool(self._prefix) + stem + (f".{again}" if again else "") + suffix
            if self._put_new(key, content, metadata) or self._holds(key, digest):
                return
        raise SinkError(f"{self.name}: {_MAX_NAMES} objects are named {name}; use another prefix.", temporary=False)

    def _put_new(self, key: str, content: bytes, metadata: dict[str, str]) -> bool:
        """Store an object; return False if the key exists already."""
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
        """Return whether an existing object has this content, because the response to an earlier upload was lost."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.head_object(Bucket=self._bucket, Key=key)
        except (BotoCoreError, ClientError):  # a write-only role: at worst the masks are stored twice
            return False
        return bool(found.get("Metadata", {}).get("sha256") == digest)


def _s3_client(uri: str, context: SinkContext) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ConfigError(f"{uri}: S3 needs boto3, which is not installed; run `pip install boto3`.") from error
    # The delivery retries and reports it; retries of the client would hide that.
    config = Config(connect_timeout=10, read_timeout=60, retries={"total_max_attempts": 2})
    try:
        session = boto3.Session(profile_name=context.profile, region_name=context.region)
        return session.client("s3", endpoint_url=context.aws_endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"{uri}: {' '.join(str(error).split())}.") from error


_TEMPORARY = (
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError",
    "ServiceUnavailable", "BandwidthLimitExceeded", "OperationAborted", "ConditionalRequestConflict",
    "RequestTimeTooSkewed", "ExpiredToken", "ExpiredTokenException", "503 Slow Down",
)  # fmt: skip
# Permanent errors that botocore raises without a response.
_PERMANENT = (
    "NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError", "ProfileNotFound",
)  # fmt: skip


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _as_sink_error(where: str, error: Exception) -> SinkError:
    """Translate an S3 or connection error: temporary, unless the request or the permissions are wrong."""
    response: dict[str, Any] = getattr(error, "response", {})
    if not response:  # no connection or a timeout
        temporary = type(error).__name__ not in _PERMANENT
    else:
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
        temporary = status >= 500 or status == 429 or _code(error) in _TEMPORARY
    return SinkError(f"{where}: was not stored ({' '.join(str(error).split())}).", temporary)
