"""S3 addresses, bucket names and object listings."""

from __future__ import annotations

from typing import Any


def is_s3(address: str) -> bool:
    """Whether an address is one of S3."""
    return address.startswith("s3://")


def s3_folder(uri: str) -> str:
    """The address as a folder's. SageMaker takes every key that begins with it: without the slash, `train` would
    bring in `train_annotation`. An archive is a single object and stays as it is."""
    return uri if uri.endswith(("/", ".tar.gz")) else f"{uri}/"


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    return bucket, key


def default_bucket_name(region: str, account: str) -> str:
    """The bucket that SageMaker's tools use where none is named."""
    return f"sagemaker-{region}-{account}"


def list_objects(client: Any, bucket: str, prefix: str) -> dict[str, tuple[int, str]]:
    """Size and entity tag of every object under a prefix, by key."""
    found: dict[str, tuple[int, str]] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # the empty objects that the console makes for folders
                found[item["Key"]] = (item["Size"], item["ETag"].strip('"'))
    return found
