"""S3 objects of a batch transform: list and check its images, fetch its masks."""

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
    """An object under a prefix: its key relative to the prefix, and its size in bytes."""

    name: str
    size: int


def list_images(s3: Any, uri: str, suffixes: Collection[str], largest: int) -> list[Item]:
    """Return the images under a prefix, which must hold nothing else: the transform reads every object.

    Raises AwsError for an empty prefix, DataError for other files or images that are too large.
    """
    bucket, prefix = parse_uri(uri)
    with aws_errors(f"listing {uri}"):
        found = [Item(key[len(prefix) :], size) for key, (size, _) in list_objects(s3, bucket, prefix).items()]
    if not found:
        raise AwsError(f"{uri}: no objects on S3.")
    foreign = [item.name for item in found if PurePosixPath(item.name).suffix.lower() not in suffixes]
    if foreign:
        raise DataError(
            f"{uri}: found {_shown(foreign)}, and a batch transform reads every object as an image; give a folder that "
            f"holds only images ({', '.join(suffixes)})."
        )
    large = [f"{item.name} ({item.size:,} bytes)" for item in found if item.size > largest]
    if large:
        raise DataError(f"{uri}: {_shown(large)} exceeds the limit of a batch transform, {largest:,} bytes.")
    return sorted(found, key=lambda item: item.name)


def fetch_masks(s3: Any, uri: str, images: Sequence[str], folder: str | Path) -> list[str]:
    """Write every image's mask, `<image>.out` under the prefix, as <stem>.png to a folder; return the missing ones.

    Subfolders of the prefix are kept. Raises DataError if two masks would have the same name.
    """
    bucket, prefix = parse_uri(uri)
    targets = {name: Path(folder, *_inside(name).parts).with_suffix(".png") for name in images}
    duplicates = [path for path, count in Counter(targets.values()).items() if count > 1]
    if duplicates:
        same = ", ".join(name for name, path in targets.items() if path == duplicates[0])
        raise DataError(f"{same}: their masks would all be named {duplicates[0]}; fetch them from {uri} yourself.")
    with aws_errors(f"listing {uri}"):
        existing = list_objects(s3, bucket, prefix)
    missing = []
    for name, path in targets.items():
        key = f"{prefix}{name}.out"
        if key not in existing:
            missing.append(name)
            continue
        with aws_errors(f"reading s3://{bucket}/{key}"):
            content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return missing


def _inside(name: str) -> PurePosixPath:
    """Return a key as a relative path. Raises DataError for a path outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"cannot fetch the object {name!r}: its path is outside the folder.")
    return path


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
