"""Sink that stores masks on S3: local files first, which a thread uploads."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pspnet.errors import ConfigError
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.segment import PNG_SUFFIX, SUFFIX, read_name
from pspnet.masks.storage import split_uri
from pspnet.masks.writer import SegmentSettings
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.mask_files import MAX_NAMES, FolderSink
from pspnet.stream.sinks.uploader import Uploader
from pspnet.stream.spill_queue import folder_name

CONTENT_TYPE = "application/vnd.pspnet.masks"
"""Content type of segments on S3."""


class S3Sink(FolderSink):
    """Sink that stores masks under s3://BUCKET/PREFIX.

    Masks are written to the destination's subfolder of `context.spill`, at most `context.spill_bytes`; an uploader
    sends finished files, leftovers of an earlier run first. Keys are PREFIX/NAME, with the names of
    pspnet.masks.segment.mask_name. No object is overwritten.
    """

    def __init__(
        self, uri: str, context: SinkContext, settings: SegmentSettings | None = None, client: Any = None
    ) -> None:
        """settings: default: those of the context. client: default: a boto3 client.

        Raises PspnetError for a URI without bucket, a missing boto3, or a folder that cannot be written.
        """
        self._bucket, self._prefix = split_uri(uri)
        self._client = _s3_client(uri, context) if client is None else client
        self.uploader = Uploader(uri, self._put, context.report)
        # The same folder for s3://BUCKET/PREFIX and s3://BUCKET/PREFIX/, distinct for every other destination.
        super().__init__(context.spill / folder_name(f"s3://{self._bucket}/{self._prefix}"), context, settings)
        self.name = uri
        for path in sorted([*self._folder.glob(f"*{SUFFIX}"), *self._folder.glob(f"*{PNG_SUFFIX}")]):
            self.uploader.add(path)

    def write(self, item: MaskedFrame) -> None:
        """Store the mask on disk; its file is uploaded when it is finished."""
        limit, waiting = self._context.spill_bytes, self.uploader.size
        if waiting and waiting + self._segments.size >= limit:
            raise SinkError(f"{self._folder}: its limit of {limit:,} bytes (--spill_bytes) is reached.", temporary=True)
        super().write(item)

    def finished(self, path: Path) -> None:
        """Queue a finished file for its upload."""
        self.uploader.add(path)

    def close(self) -> None:
        """Finish the open segment. Raises SinkError if files are left to upload."""
        super().close()
        self.uploader.close()
        if len(self.uploader):
            raise SinkError(
                f"{self.name}: {len(self.uploader)} files were not uploaded; they are in {self._folder}, and the next "
                "run with the same --spill uploads them first.",
                temporary=True,
            )
        with suppress(OSError):  # not empty, or shared with other sinks
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def _put(self, name: str, content: bytes) -> None:
        """Store an object under its name, or the next free one. Raises SinkError."""
        parsed = read_name(name)
        assert parsed is not None
        digest = hashlib.sha256(content).hexdigest()
        last = parsed.last_captured if parsed.last_captured is not None else parsed.captured
        metadata = {"sha256": digest, "captured-from": f"{parsed.captured:.6f}", "captured-to": f"{last:.6f}"}
        stem, suffix = os.path.splitext(name)
        for again in range(MAX_NAMES):
            key = f"{self._prefix}/" * bool(self._prefix) + stem + (f".{again}" if again else "") + suffix
            if self._put_new(key, content, metadata) or self._holds(key, digest):
                return
        raise SinkError(f"{self.name}: {MAX_NAMES} objects are named {name}; use another prefix.", temporary=False)

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
    # The uploader retries and reports it; retries of the client would hide that.
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
