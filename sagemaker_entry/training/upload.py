"""Upload a data set's channels to S3: in parallel, checked by SHA-256, and only what is not there yet."""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pspnet.config.folders import REQUIRED_CHANNELS
from pspnet.data.channels import list_files
from pspnet.data.io.images import ANNOTATION_SUFFIXES, IMAGE_SUFFIXES
from pspnet.errors import DataError
from sagemaker_entry.aws.session import AwsError, aws_errors, boto_session, find_bucket
from sagemaker_entry.training.job_request import parse_uri, upload_uri
from sagemaker_entry.training.job_settings import JobSettings
from sagemaker_entry.training.preflight import check_data

_SHOWN = 3


@dataclass(frozen=True)
class Upload:
    """What an upload did: files sent, files that were there, bytes sent, and objects that no file stands for."""

    sent: int
    skipped: int
    sent_bytes: int
    foreign: tuple[str, ...] = ()


def upload_command(arguments: argparse.Namespace) -> int:
    """`upload DATA_DIR`: the doctor's check, then the upload; 1 where training on the data would be wrong."""
    settings = JobSettings(
        bucket=arguments.bucket,
        prefix=arguments.prefix.strip("/"),
        region=arguments.region,
        profile=arguments.profile,
    )
    if arguments.workers < 1:
        raise DataError(f"workers: found {arguments.workers}; expected at least 1.")
    if not settings.prefix:
        raise DataError("prefix: is empty; expected a folder name of the bucket.")
    folders = find_channels(arguments.data)
    if not arguments.skip_check and not check_data(folders, arguments.num_classes, arguments.workers):
        print("error: nothing was uploaded; mend what the report names, or give --skip_check.", file=sys.stderr)
        return 1
    session = boto_session(settings)
    bucket = find_bucket(session, settings)
    upload_channels(session, folders, settings, bucket, arguments.workers)
    print(f"Train with: python -m sagemaker_entry train --config FILE --data s3://{bucket}/{settings.prefix}")
    return 0


def find_channels(data: Path) -> dict[str, Path]:
    """The channel folders of a data set: the four required ones, and label_map where there is one."""
    if not data.is_dir():
        raise DataError(f"{data}: is not a folder; expected one that holds {', '.join(REQUIRED_CHANNELS)}.")
    missing = [name for name in REQUIRED_CHANNELS if not (data / name).is_dir()]
    if missing:
        raise DataError(f"{data}: has no folder {' and no folder '.join(missing)}; a job needs all four channels.")
    folders = {name: data / name for name in REQUIRED_CHANNELS}
    if (data / "label_map").is_dir():
        folders["label_map"] = data / "label_map"
    return folders


def channel_files(name: str, folder: Path) -> list[Path]:
    """The files of a channel that a job reads; a model channel is taken whole."""
    if name == "model":
        return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    suffixes = {"label_map": (".json",)}.get(
        name, ANNOTATION_SUFFIXES if name.endswith("annotation") else IMAGE_SUFFIXES
    )
    return list_files(folder, suffixes, name)


def upload_channels(
    session: Any, folders: Mapping[str, Path], settings: JobSettings, bucket: str, workers: int = 8
) -> dict[str, Upload]:
    """Upload every channel and print a line about each; raises AwsError. What is there already is not sent again."""
    client = _client(session, workers)
    done = {}
    for name, folder in folders.items():
        uri = upload_uri(settings, bucket, name)
        files = channel_files(name, folder)
        with aws_errors(f"uploading {name}", settings):
            done[name] = upload_folder(client, folder, files, uri, workers)
        result = done[name]
        print(
            f"{uri}: {result.sent:,} files sent ({result.sent_bytes:,} bytes), {result.skipped:,} were there already."
        )
        if result.foreign:
            shown = ", ".join(result.foreign[:_SHOWN])
            print(
                f"warning: {uri} holds {len(result.foreign):,} objects that {folder} does not ({shown}"
                f"{', ...' if len(result.foreign) > _SHOWN else ''}); the job would read them too. Delete them with "
                "`aws s3 rm`, or give another --prefix.",
                file=sys.stderr,
            )
    return done


def _client(session: Any, workers: int) -> Any:
    from botocore.config import Config

    return session.client("s3", config=Config(max_pool_connections=workers))


def upload_folder(client: Any, folder: Path, files: Sequence[Path], uri: str, workers: int) -> Upload:
    """Upload files of a folder under an address, with a progress bar in bytes."""
    bucket, prefix = parse_uri(uri)
    there = list_objects(client, bucket, prefix)
    keys = {path: prefix + path.relative_to(folder).as_posix() for path in files}
    foreign = tuple(sorted(set(there) - set(keys.values())))
    total = sum(path.stat().st_size for path in files)
    sent: list[int] = []
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=folder.name, leave=False, disable=None)
    with bar, ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(_upload_file, client, path, bucket, keys[path], there.get(keys[path])) for path in files]
        try:
            for path, task in zip(files, tasks):
                if task.result():
                    sent.append(path.stat().st_size)
                bar.update(path.stat().st_size)
        except BaseException:
            # Otherwise the pool would first try all the files that are left.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Upload(len(sent), len(files) - len(sent), sum(sent), tuple(key[len(prefix) :] for key in foreign))


def list_objects(client: Any, bucket: str, prefix: str) -> dict[str, tuple[int, str]]:
    """Size and entity tag of every object under a prefix, by key."""
    found: dict[str, tuple[int, str]] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # the empty objects that the console makes for folders
                found[item["Key"]] = (item["Size"], item["ETag"].strip('"'))
    return found


def _upload_file(client: Any, path: Path, bucket: str, key: str, there: tuple[int, str] | None) -> bool:
    """Send one file unless the object is the same; whether it was sent. S3 checks the SHA-256 on arrival."""
    content = path.read_bytes()
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    if there is not None and there[0] == len(content):
        # The tag is the MD5 of what was sent in one piece without a KMS key; otherwise S3 is asked for its SHA-256.
        if there[1] == hashlib.md5(content, usedforsecurity=False).hexdigest():
            return False
        if client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED").get("ChecksumSHA256") == checksum:
            return False
    client.put_object(Bucket=bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum)
    return True


def count_images(client: Any, uri: str) -> int:
    """Images directly in a channel's folder on S3, as train.py would count them."""
    bucket, prefix = parse_uri(uri)
    return sum(1 for key in list_objects(client, bucket, prefix) if _is_image(key[len(prefix) :]))


def _is_image(name: str) -> bool:
    return "/" not in name and not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def check_objects(client: Any, channels: Mapping[str, str], settings: JobSettings) -> None:
    """Raise AwsError that names the channels under which S3 holds nothing."""
    empty: Iterable[str] = [
        f"{name} ({uri})" for name, uri in channels.items() if not _holds_anything(client, uri, settings)
    ]
    if empty:
        raise AwsError(
            f"S3 holds no file for {', '.join(empty)}; upload the data with `python -m sagemaker_entry upload "
            "DATA_DIR`, or give --data s3://BUCKET/FOLDER."
        )


def _holds_anything(client: Any, uri: str, settings: JobSettings) -> bool:
    bucket, prefix = parse_uri(uri)
    with aws_errors(f"looking into {uri}", settings):
        return bool(client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))
