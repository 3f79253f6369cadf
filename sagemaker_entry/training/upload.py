"""Upload of a data set's channels to S3: parallel, verified by SHA-256, only new or changed files."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pspnet.config.command_line import parse_settings
from pspnet.config.folders import REQUIRED_CHANNELS
from pspnet.config.settings import setting
from pspnet.data.channels import list_files
from pspnet.data.io.images import ANNOTATION_SUFFIXES, IMAGE_SUFFIXES
from pspnet.errors import DataError
from sagemaker_entry.aws.account_settings import AccountSettings
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.s3_objects import list_objects, parse_uri
from sagemaker_entry.aws.session import boto_session, find_bucket
from sagemaker_entry.training.job_request import upload_uri
from sagemaker_entry.training.preflight import check_data

_SHOWN = 3


@dataclass(frozen=True)
class Upload:
    """Result of an upload: files sent, unchanged files skipped, bytes sent, and objects without a local file."""

    sent: int
    skipped: int
    sent_bytes: int
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, init=False)
class UploadSettings(AccountSettings):
    """Settings of `upload`."""

    data: Path = setting(..., "folder that holds train, train_annotation, ...", positional=True, metavar="DATA_DIR")
    num_classes: int | None = setting(None, "classes of the model; found in the masks if unset", ge=2, le=254)
    workers: int = setting(8, "files read and uploaded concurrently", ge=1)
    skip_check: bool = setting(False, "upload without reading every file first")


def upload_command(argv: Sequence[str], command: str) -> int:
    """Check the data and upload it; return the exit code, 1 for data that are not fit for training."""
    settings = parse_settings(UploadSettings, argv, command, "Check a data set and upload its channels to S3.")
    require_packages("boto3")
    folders = find_channels(settings.data)
    if not settings.skip_check and not check_data(folders, settings.num_classes, settings.workers):
        print("error: nothing was uploaded; fix the reported errors, or give --skip_check.", file=sys.stderr)
        return 1
    session = boto_session(settings)
    bucket = find_bucket(session, settings)
    upload_channels(session, folders, settings, bucket, settings.workers)
    print(f"Train with: python -m sagemaker_entry train --config FILE --data s3://{bucket}/{settings.prefix}")
    return 0


def find_channels(data: Path) -> dict[str, Path]:
    """Return the channel folders of a data set: the four required ones, and label_map if it exists."""
    if not data.is_dir():
        raise DataError(f"{data}: not a folder; expected one with {', '.join(REQUIRED_CHANNELS)}.")
    missing = [name for name in REQUIRED_CHANNELS if not (data / name).is_dir()]
    if missing:
        raise DataError(f"{data}: no folder {' and no folder '.join(missing)}; a job needs all four channels.")
    folders = {name: data / name for name in REQUIRED_CHANNELS}
    if (data / "label_map").is_dir():
        folders["label_map"] = data / "label_map"
    return folders


def channel_files(name: str, folder: Path) -> list[Path]:
    """Return the files of a channel that a job reads; for a model channel, all files."""
    if name == "model":
        return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    suffixes = {"label_map": (".json",)}.get(
        name, ANNOTATION_SUFFIXES if name.endswith("annotation") else IMAGE_SUFFIXES
    )
    return list_files(folder, suffixes, name)


def upload_channels(
    session: Any, folders: Mapping[str, Path], settings: AccountSettings, bucket: str, workers: int = 8
) -> dict[str, Upload]:
    """Upload every channel and print a line for each; unchanged files are not sent again. Raises AwsError."""
    client = _client(session, workers)
    done = {}
    for name, folder in folders.items():
        uri = upload_uri(settings, bucket, name)
        files = channel_files(name, folder)
        with aws_errors(f"uploading {name}", settings):
            done[name] = upload_folder(client, folder, files, uri, workers)
        result = done[name]
        print(f"{uri}: {result.sent:,} files sent ({result.sent_bytes:,} bytes), {result.skipped:,} unchanged.")
        if result.foreign:
            shown = ", ".join(result.foreign[:_SHOWN])
            print(
                f"warning: {uri} has {len(result.foreign):,} objects that are not in {folder} ({shown}"
                f"{', ...' if len(result.foreign) > _SHOWN else ''}); the job would read them too. Delete them with "
                "`aws s3 rm`, or give another --prefix.",
                file=sys.stderr,
            )
    return done


def _client(session: Any, workers: int) -> Any:
    from botocore.config import Config

    return session.client("s3", config=Config(max_pool_connections=workers))


def upload_folder(client: Any, folder: Path, files: Sequence[Path], uri: str, workers: int) -> Upload:
    """Upload files of a folder to an S3 address, with a progress bar in bytes."""
    bucket, prefix = parse_uri(uri)
    found = list_objects(client, bucket, prefix)
    keys = {path: prefix + path.relative_to(folder).as_posix() for path in files}
    foreign = tuple(sorted(set(found) - set(keys.values())))
    total = sum(path.stat().st_size for path in files)
    sent: list[int] = []
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=folder.name, leave=False, disable=None)
    with bar, ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(_upload_file, client, path, bucket, keys[path], found.get(keys[path])) for path in files]
        try:
            for path, task in zip(files, tasks):
                if task.result():
                    sent.append(path.stat().st_size)
                bar.update(path.stat().st_size)
        except BaseException:
            # Otherwise the pool would first upload all remaining files.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Upload(len(sent), len(files) - len(sent), sum(sent), tuple(key[len(prefix) :] for key in foreign))


def _upload_file(client: Any, path: Path, bucket: str, key: str, existing: tuple[int, str] | None) -> bool:
    """Send one file unless the object is identical; return True if sent. S3 verifies the SHA-256."""
    content = path.read_bytes()
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    if existing is not None and existing[0] == len(content):
        # The tag is the MD5 of a single-part upload without a KMS key; otherwise compare S3's SHA-256.
        if existing[1] == hashlib.md5(content, usedforsecurity=False).hexdigest():
            return False
        if client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED").get("ChecksumSHA256") == checksum:
            return False
    client.put_object(Bucket=bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum)
    return True


def count_images(client: Any, uri: str) -> int:
    """Count the images directly in a channel's folder on S3, as train.py does."""
    bucket, prefix = parse_uri(uri)
    return sum(1 for key in list_objects(client, bucket, prefix) if _is_image(key[len(prefix) :]))


def _is_image(name: str) -> bool:
    return "/" not in name and not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def check_objects(client: Any, channels: Mapping[str, str], settings: AccountSettings) -> None:
    """Raise AwsError that names the channels without objects on S3."""
    empty: Iterable[str] = [
        f"{name} ({uri})" for name, uri in channels.items() if not _has_objects(client, uri, settings)
    ]
    if empty:
        raise AwsError(
            f"no objects on S3 for {', '.join(empty)}; upload the data with `python -m sagemaker_entry upload "
            "DATA_DIR`, or give --data s3://BUCKET/FOLDER."
        )


def _has_objects(client: Any, uri: str, settings: AccountSettings) -> bool:
    bucket, prefix = parse_uri(uri)
    with aws_errors(f"listing {uri}", settings):
        return bool(client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))
