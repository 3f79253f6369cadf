"""Shared hosting test helpers: a tiny model directory, and a bucket with its archive."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.commands import dispatch
from tests.sagemaker_entry.conftest import ACCOUNT, REGION, ROLE, Aws

BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"
ARCHIVE = f"s3://{BUCKET}/jobs/cars/output/model.tar.gz"
DEPLOY = ["deploy", "--role", ROLE]
STAMP = r"20\d{12}"


def save_tiny_model(folder: Path) -> Path:
    """Write a model directory of 3 classes as training does, code/ included."""
    from pspnet.artifact.bundle import write_code
    from pspnet.artifact.model_directory import architecture_of, save_artifact
    from pspnet.config.schema import Config
    from pspnet.models.build import build_model

    config = Config(num_classes=3, width=4, aux_weight=0.0, data="shapes", use_pretrained_model=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_artifact(folder, build_model(**architecture_of(config)).eval(), config, {}, {})
    write_code(folder)
    return folder


def pack(folder: Path, archive: Path, names: tuple[str, ...] = ("model.safetensors", "config.json", "code")) -> Path:
    """Write a model.tar.gz with these entries of the folder, in this order."""
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)
    return archive


def upload(aws: Aws, archive: Path, uri: str = ARCHIVE) -> str:
    """Upload an archive to S3; create the default bucket if needed."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    s3 = aws.session.client("s3")
    if bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.upload_file(str(archive), bucket, key)
    aws.requests.clear()
    return uri


def only(aws: Aws, operation: str) -> dict[str, Any]:
    (request,) = aws.sent(operation)
    return request


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """Return the last line of a failing deployment."""
    capsys.readouterr()
    assert run_guarded(dispatch, [*DEPLOY, *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = error.rstrip("\n").split("\n")
    assert lines[-1].startswith("error: "), error
    return lines[-1]
