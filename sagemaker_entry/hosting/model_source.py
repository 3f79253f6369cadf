"""Source of a hosted model (a job's artifact, an archive on S3, or a local model) and its upload to S3."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pspnet.artifact.file_names import ARCHIVE_NAME, CONFIG_NAME, WEIGHTS_NAME
from pspnet.errors import WeightsError
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.resources import job_status
from sagemaker_entry.aws.s3_objects import is_s3, parse_uri
from sagemaker_entry.hosting.endpoint_settings import ModelSettings
from sagemaker_entry.hosting.model_check import (
    Findings,
    check_findings,
    has_other_code,
    inspect_archive,
    inspect_directory,
    pack_model,
)

_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


def kind_of(model: str) -> str:
    """Classify a model argument as "s3", "local" or "job". Raises WeightsError for anything else."""
    if is_s3(model):
        bucket, key = parse_uri(model)
        if not bucket or not key.endswith(".tar.gz"):
            raise WeightsError(f"{model}: expected the address of an archive, s3://BUCKET/.../model.tar.gz.")
        return "s3"
    if Path(model).exists():
        return "local"
    if not _JOB_NAME.fullmatch(model):
        raise WeightsError(
            f"{model}: no such file or folder; give a model directory, a model.tar.gz, s3://.../model.tar.gz, or the "
            "name of a training job."
        )
    return "job"


def target_uri(settings: ModelSettings, bucket: str, name: str) -> str:
    """Return the S3 address for the upload of a local or completed archive."""
    return f"s3://{bucket}/{settings.prefix}/models/{name}/{ARCHIVE_NAME}"


def artifact_of_job(session: Any, name: str) -> str:
    """Return the S3 address of a training job's model. Raises AwsError for a missing, running or failed job."""
    description = job_status(session.client("sagemaker"), name)
    status = description["TrainingJobStatus"]
    artifact: str | None = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if status == "InProgress":
        raise AwsError(f"the job {name} is still running; deploy it when it has completed.")
    if status == "Failed":
        reason = description.get("FailureReason") or "SageMaker gave no reason"
        raise AwsError(f"the job {name} failed and has no model to deploy. {reason}")
    if status == "Stopped" and artifact:
        print(f"warning: the job {name} was stopped early; its model is the best one until then.")
    elif status != "Completed" or not artifact:
        raise AwsError(f"the job {name} is {status} and has no model; give a completed job.")
    return artifact


def ensure_on_s3(session: Any, settings: ModelSettings, bucket: Callable[[], str], name: str) -> str:
    """Return the S3 address of a complete archive of the settings' model; print warnings and uploads.

    A job's artifact or an archive on S3 that includes its code is used in place. Anything else is completed and
    uploaded under the prefix. Raises WeightsError and AwsError before anything is created.
    """
    model = settings.model
    kind = kind_of(model)
    if kind == "local":
        with local_archive(Path(model), settings.refresh_code) as archive:
            return _upload(session.client("s3"), archive, target_uri(settings, bucket(), name), settings)
    uri = artifact_of_job(session, model) if kind == "job" else model
    source_bucket, key = parse_uri(uri)
    s3 = session.client("s3")
    with aws_errors(f"reading {uri}", settings):
        body = _open_object(s3, source_bucket, key, uri)
        found = inspect_archive(body, uri)
        body.close()
    check_findings(found, uri)
    if found.has_code and not settings.refresh_code:
        _note_other_code(found, uri)
        return uri
    with tempfile.TemporaryDirectory(prefix="pspnet-model-") as folder:
        archive = Path(folder) / ARCHIVE_NAME
        with aws_errors(f"reading {uri}", settings):
            s3.download_file(source_bucket, key, str(archive))
        with local_archive(archive, refresh_code=settings.refresh_code) as complete:
            return _upload(s3, complete, target_uri(settings, bucket(), name), settings)


def _open_object(s3: Any, bucket: str, key: str, uri: str) -> Any:
    from botocore.exceptions import ClientError

    try:
        return s3.get_object(Bucket=bucket, Key=key)["Body"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            raise AwsError(f"{uri}: no such S3 object; `aws s3 ls` lists the existing ones.") from error
        raise


def _note_other_code(found: Findings, where: str) -> None:
    if has_other_code(found):
        print(f"note: {where} includes code of another version; --refresh_code replaces it.", file=sys.stderr)


def inspect_local(path: Path) -> tuple[Path, Findings]:
    """Return the local directory or archive of a model and its contents. Raises WeightsError for anything else."""
    if path.is_dir() and not (path / CONFIG_NAME).is_file() and (path / ARCHIVE_NAME).is_file():
        path = path / ARCHIVE_NAME
    if path.is_dir():
        found = inspect_directory(path)
    else:
        with open(path, "rb") as stream:
            found = inspect_archive(stream, str(path))
    check_findings(found, str(path))
    return path, found


@contextmanager
def local_archive(path: Path, refresh_code: bool = False) -> Iterator[Path]:
    """Yield a complete model.tar.gz of a local model directory or archive; the original is not changed.

    Raises WeightsError if it is not a model of this project or does not load.
    """
    path, found = inspect_local(path)
    if not refresh_code:
        _note_other_code(found, str(path))
    from pspnet.artifact.bundle import unpacked, write_code
    from pspnet.artifact.file_names import CODE_NAME
    from pspnet.artifact.model_directory import load_artifact

    keep_code = found.has_code and not refresh_code
    with tempfile.TemporaryDirectory(prefix="pspnet-model-") as folder:
        packed, staged = Path(folder) / "packed", Path(folder) / "staged"
        packed.mkdir()
        staged.mkdir()
        if path.is_file():
            (packed / ARCHIVE_NAME).symlink_to(path.resolve())
        with unpacked(packed if path.is_file() else path) as model:
            load_artifact(model)
            if path.is_file() and keep_code:
                yield path
                return
            for name in (WEIGHTS_NAME, CONFIG_NAME, *([CODE_NAME] if keep_code else [])):
                (staged / name).symlink_to((model / name).resolve())
            if not keep_code:
                write_code(staged)
            archive = Path(folder) / ARCHIVE_NAME
            pack_model(staged, archive)
        yield archive


def _upload(s3: Any, archive: Path, uri: str, settings: ModelSettings) -> str:
    bucket, key = parse_uri(uri)
    size = archive.stat().st_size
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=ARCHIVE_NAME, leave=False, disable=None)
    with bar, aws_errors(f"uploading {uri}", settings):
        s3.upload_file(str(archive), bucket, key, Callback=bar.update, ExtraArgs={"ChecksumAlgorithm": "SHA256"})
    print(f"Model: {uri} ({size:,} bytes sent)", flush=True)
    return uri
