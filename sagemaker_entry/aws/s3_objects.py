"""S3 addresses, bucket names and object listings."""

from __future__ import annotations

from typing import Any


def is_s3(address: str) -> bool:
    """Return True for an s3:// address."""
    return address.startswith("s3://")


def s3_folder(uri: str) -> str:
    """Return the address with a trailing slash; an archive's stays unchanged.

    SageMaker reads every key with this prefix: without the slash, `train` would include `train_annotation`.
    """
    return uri if uri.endswith(("/", ".tar.gz")) else f"{uri}/"


def parse_uri(uri: str) -> tuple[str, str]:
    """Split an s3:// address into bucket and key."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    return bucket, key


def default_bucket_name(region: str, account: str) -> str:
    """Return the name of SageMaker's default bucket."""
    return f"sagemaker-{region}-{account}"


def list_objects(client: Any, bucket: str, prefix: str) -> dict[str, tuple[int, str]]:
    """Return size and entity tag of every object under a prefix, by key."""
    found: dict[str, tuple[int, str]] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # empty objects that the console creates for folders
                found[item["Key"]] = (item["Size"], item["ETag"].strip('"'))
    return found
