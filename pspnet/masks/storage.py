"""Places where masks lie: bytes, files, folders, objects of S3. Needs no package but boto3, for S3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pspnet.masks.codec import MaskFileError
from pspnet.masks.segment import OPEN_SUFFIX, SUFFIX, read_name

T = TypeVar("T")


class ByteRanges(Protocol):
    """Bytes that can be read in parts."""

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer at the end."""
        ...


class BytesInMemory:
    """ByteRanges over bytes."""

    def __init__(self, data: bytes, name: str = "the bytes") -> None:
        self._data, self.name, self.size = data, name, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`."""
        return self._data[offset : offset + length]


class FileGone(MaskFileError):
    """A segment that was being written is not there any more, and no finished one took its place."""


class BytesOfFile:
    """ByteRanges over a file, which is opened for every part. Raises MaskFileError where it cannot be read.

    A segment that is finished meanwhile, and so has another name, is read under that: its bytes stay where they were.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileGone for a segment that was being written, and is neither there nor finished."""
        self._path, self.name = path, str(path)
        self.size = self._tried(lambda: self._path.stat().st_size)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`."""
        return self._tried(lambda: self._part(offset, length))

    def _part(self, offset: int, length: int) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def _tried(self, action: Callable[[], T]) -> T:
        try:
            try:
                return action()
            except FileNotFoundError:
                if not self._path.name.endswith(OPEN_SUFFIX):
                    raise
                finished = _finished(self._path)
            if finished is None:
                raise FileGone(f"{self._path}: is gone, and no finished segment begins like it.")
            self._path, self.name = finished, str(finished)
            return action()
        except OSError as error:
            raise MaskFileError(f"{self._path}: cannot be read ({error.strerror or error}).") from error


def _finished(path: Path) -> Path | None:
    """What became of an open segment: the finished one with its first mask that was written last. Raises OSError."""
    start = read_name(path.name)
    if start is None:
        return None
    found = []
    for one in path.parent.glob(f"*{SUFFIX}"):
        said = read_name(one.name)
        if said is not None and (said.captured, said.frame) == (start.captured, start.frame):
            found.append(one)
    return max(found, key=lambda one: one.stat().st_mtime, default=None)


class BytesOnS3:
    """ByteRanges over an object of S3, by range requests. Raises MaskFileError where it cannot be read."""

    def __init__(self, client: Any, bucket: str, key: str, size: int | None = None) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self.name = f"s3://{bucket}/{key}"
        self.size = int(self._call("head_object")["ContentLength"]) if size is None else size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`."""
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
    """The files of masks at a place, each with what opens it, in the order of their times.

    Raises MaskFileError where there is no such file, folder or bucket.
    """
    if isinstance(where, str) and where.startswith("s3://"):
        return _list_s3(where, client)
    path = Path(where)
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if read_name(one.name) is not None)
        return [(one.name, partial(BytesOfFile, one)) for one in found]
    if not path.exists():
        raise MaskFileError(f"{path}: there is no such file or folder; expected masks that `pspnet stream` wrote.")
    return [(path.name, partial(BytesOfFile, path))]


def split_uri(uri: str) -> tuple[str, str]:
    """s3://BUCKET/PREFIX -> bucket and prefix, without slashes at its ends. Raises MaskFileError without a bucket."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise MaskFileError(f"{uri}: names no bucket; expected s3://BUCKET/PREFIX.")
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
            for one in page.get("Contents", []):
                name = one["Key"].rpartition("/")[2]
                if read_name(name) is not None:
                    found.append((name, partial(BytesOnS3, client, bucket, one["Key"], one["Size"])))
    except (BotoCoreError, ClientError) as error:
        raise MaskFileError(f"{uri}: cannot be listed ({' '.join(str(error).split())}).") from error
    return sorted(found, key=lambda one: one[0])
