"""The objects of a batch transform: its images under an S3 prefix, and the masks that it leaves under another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pspnet.errors import DataError
from pspnet.system.atomic_files import atomic_write
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.s3_objects import list_objects, parse_uri

_SHOWN = 3


@dataclass(frozen=True)
class Item:
    """An object under a prefix: its key from there, and its bytes."""

    name: str
    size: int


def list_images(s3: Any, uri: str, suffixes: Collection[str], largest: int) -> list[Item]:
    """The images under a prefix. The transform would take every object, so there may be nothing else.

    Raises AwsError for an empty prefix, DataError for other files, images too large, or masks of the same name.
    """
    bucket, prefix = parse_uri(uri)
    with aws_errors(f"looking into {uri}"):
        found = [Item(key[len(prefix) :], size) for key, (size, _) in list_objects(s3, bucket, prefix).items()]
    if not found:
        raise AwsError(f"{uri}: S3 holds nothing there.")
    foreign = [item.name for item in found if PurePosixPath(item.name).suffix.lower() not in suffixes]
    if foreign:
        raise DataError(
            f"{uri}: holds {_shown(foreign)}, and a batch transform takes every object as an image; give a folder that "
            f"holds images only ({', '.join(suffixes)})."
        )
    large = [f"{item.name} ({item.size:,} bytes)" for item in found if item.size > largest]
    if large:
        raise DataError(f"{uri}: {_shown(large)} is more than a batch transform carries, {largest:,} bytes.")
    return sorted(found, key=lambda item: item.name)


def fetch_masks(s3: Any, uri: str, images: Sequence[str], folder: str) -> list[str]:
    """Write every image's mask, `<image>.out` under the prefix, as <stem>.png into a folder; the images without one.

    Images in folders under the prefix keep these folders. Raises DataError where two masks would have one name.
    """
    bucket, prefix = parse_uri(uri)
    targets = {name: Path(folder, *_inside(name).parts).with_suffix(".png") for name in images}
    doubled = [path for path, count in Counter(targets.values()).items() if count > 1]
    if doubled:
        same = ", ".join(name for name, path in targets.items() if path == doubled[0])
        raise DataError(f"{same}: their masks would all be named {doubled[0]}; they are in {uri}.")
    with aws_errors(f"looking into {uri}"):
        there = list_objects(s3, bucket, prefix)
    missing = []
    for name, path in targets.items():
        key = f"{prefix}{name}.out"
        if key not in there:
            missing.append(name)
            continue
        with aws_errors(f"reading s3://{bucket}/{key}"):
            content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return missing


def _inside(name: str) -> PurePosixPath:
    """A key as a path that stays in its folder; raises DataError for one that would lead out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"the object {name!r} cannot be fetched: its name leads out of the folder.")
    return path


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
