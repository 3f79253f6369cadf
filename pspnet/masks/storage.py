"""Random access to stored masks: bytes, files, folders and S3 objects (with boto3, imported lazily)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pspnet.masks.codec import MaskFileError
from pspnet.masks.segment import OPEN_SUFFIX, SUFFIX, read_name

T = TypeVar("T")


class ByteRanges(Protocol):
    """Bytes with random access."""

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end."""
        ...


class BytesInMemory:
    """ByteRanges over bytes."""

    def __init__(self, data: bytes, name: str = "the bytes") -> None:
        self._data, self.name, self.size = data, name, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from `offset`."""
        return self._data[offset : offset + length]


class FileGone(MaskFileError):
    """An open segment no longer exists, and no finished segment replaces it."""


class BytesOfFile:
    """ByteRanges over a file, which is opened for every read. Raises MaskFileError if it cannot be read.

    An open segment that was finished and renamed in the meantime is read under its new name; its offsets are unchanged.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileGone for an open segment that was deleted."""
        self._path, self.name = path, str(path)
        self.size = self._retry_renamed(lambda: self._path.stat().st_size)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from `offset`."""
        return self._retry_renamed(lambda: self._part(offset, length))

    def _part(self, offset: int, length: int) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def _retry_renamed(self, action: Callable[[], T]) -> T:
        try:
            try:
                return action()
            except FileNotFoundError:
                if not self._path.name.endswith(OPEN_SUFFIX):
                    raise
                finished = _finished(self._path)
            if finished is None:
                raise FileGone(f"{self._path}: no longer exists, and no finished segment has its first mask.")
            self._path, self.name = finished, str(finished)
            return action()
        except OSError as error:
            raise MaskFileError(f"{self._path}: cannot be read ({error.strerror or error}).") from error


def _finished(path: Path) -> Path | None:
    """Return the newest finished segment with the first mask of an open segment, or None. Raises OSError."""
    start = read_name(path.name)
    if start is None:
        return None
    found = []
    for candidate in path.parent.glob(f"*{SUFFIX}"):
        name = read_name(candidate.name)
        if name is not None and (name.captured, name.frame) == (start.captured, start.frame):
            found.append(candidate)
    return max(found, key=lambda candidate: candidate.stat().st_mtime, default=None)


class BytesOnS3:
    """ByteRanges over an S3 object, by range requests. Raises MaskFileError if it cannot be read."""

    def __init__(self, client: Any, bucket: str, key: str, size: int | None = None) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self.name = f"s3://{bucket}/{key}"
        self.size = int(self._call("head_object")["ContentLength"]) if size is None else size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from `offset`."""
        if offset >= self.size or length <= 0:
            return b""
        last = min(offset + length, self.size) - 1
        content: bytes = self._call("get_object", Range=f"bytes={offset}-{last}")["Body"].read()
        return content

    def _call(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self._bucket, Key=self._key, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise MaskFileError(f"{self.name}: cannot be read ({' '.join(str(error).split())}).") from error


def list_masks(where: str | Path, client: Any = None) -> list[tuple[str, Callable[[], ByteRanges]]]:
    """List mask files in order of capture time, each with a function that opens it.

    Raises MaskFileError if the file, folder or bucket does not exist.
    """
    if isinstance(where, str) and where.startswith("s3://"):
        return _list_s3(where, client)
    path = Path(where)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if read_name(file.name) is not None)
        return [(file.name, partial(BytesOfFile, file)) for file in found]
    if not path.exists():
        raise MaskFileError(f"{path}: no such file or folder; expected masks written by `pspnet stream`.")
    return [(path.name, partial(BytesOfFile, path))]


def split_uri(uri: str) -> tuple[str, str]:
    """Split s3://BUCKET/PREFIX; the prefix has no slashes at its ends. Raises MaskFileError without a bucket."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise MaskFileError(f"{uri}: has no bucket; expected s3://BUCKET/PREFIX.")
    return bucket, prefix.strip("/")


def _list_s3(uri: str, client: Any) -> list[tuple[str, Callable[[], ByteRanges]]]:
    bucket, prefix = split_uri(uri)
    if client is None:
        try:
            import boto3
        except ImportError as error:
            raise MaskFileError(f"{uri}: reading S3 needs boto3; run `pip install boto3`.") from error
        client = boto3.client("s3")
    from botocore.exceptions import BotoCoreError, ClientError

    if read_name(prefix.rpartition("/")[2]) is not None:
        return [(prefix.rpartition("/")[2], partial(BytesOnS3, client, bucket, prefix))]
    found = []
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        for page in pages:
            for item in page.get("Contents", []):
                name = item["Key"].rpartition("/")[2]
                if read_name(name) is not None:
                    found.append((name, partial(BytesOnS3, client, bucket, item["Key"], item["Size"])))
    except (BotoCoreError, ClientError) as error:
        raise MaskFileError(f"{uri}: cannot be listed ({' '.join(str(error).split())}).") from error
    return sorted(found, key=lambda pair: pair[0])
