"""Source of a hosted model: jobs, archives and directories; completed, used in place, or refused early."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sagemaker.core", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")

from sagemaker_entry.commands import dispatch
from tests.sagemaker_entry.conftest import Aws
from tests.sagemaker_entry.hosting.hosting_fixtures import ARCHIVE, BUCKET, DEPLOY, STAMP, fails, only, pack, upload


def members(aws: Aws, uri: str) -> list[str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    body = aws.session.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return tar.getnames()


def test_a_job_is_deployed_by_its_name(aws: Aws, stored: str) -> None:
    job = {"TrainingJobName": "cars-1", "TrainingJobStatus": "Completed"}
    aws.answers["DescribeTrainingJob"] = lambda _: {**job, "ModelArtifacts": {"S3ModelArtifacts": stored}}
    assert dispatch([*DEPLOY, "cars-1", "--no_wait"]) == 0
    assert only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"] == stored


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"TrainingJobStatus": "InProgress"}, "the job cars-1 is still running; deploy it when it has completed."),
        ({"TrainingJobStatus": "Failed", "FailureReason": "label 9"}, "the job cars-1 failed and has no model to"),
        ({"TrainingJobStatus": "Stopped"}, "the job cars-1 is Stopped and has no model"),
    ],
)
def test_jobs_without_a_model(aws: Aws, job: dict[str, Any], expected: str, capsys: pytest.CaptureFixture) -> None:
    aws.answers["DescribeTrainingJob"] = lambda _: {"TrainingJobName": "cars-1", **job}
    assert expected in fails(capsys, "cars-1")
    assert not aws.sent("CreateModel")


def test_a_missing_job(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    assert "Could not find training job" in fails(capsys, "cars-1")


@pytest.mark.slow
def test_a_model_directory_is_packed_and_uploaded(aws: Aws, tiny_model: Path) -> None:
    before = sorted(str(path) for path in tiny_model.rglob("*"))
    assert dispatch([*DEPLOY, str(tiny_model), "--endpoint_name", "cars"]) == 0
    uri = only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"]
    assert re.fullmatch(rf"s3://{BUCKET}/xporter-segmentation/models/cars-{STAMP}/model\.tar\.gz", uri)
    found = members(aws, uri)
    assert {"code/inference.py", "code/pspnet/__init__.py", "config.json", "model.safetensors"} <= set(found)
    assert not [name for name in found if "__pycache__" in name]
    assert sorted(str(path) for path in tiny_model.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("location", ["directory", "archive", "s3"])
def test_missing_code_is_added(
    location: str, aws: Aws, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        (bare / name).write_bytes((tiny_model / name).read_bytes())
    packed = pack(bare, tmp_path / "bare.tar.gz", ("model.safetensors", "config.json"))
    argument = {"directory": str(bare), "archive": str(packed), "s3": ARCHIVE}[location]
    if location == "s3":
        upload(aws, packed)
    assert dispatch([*DEPLOY, argument, "--no_wait"]) == 0
    uri = only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"]
    assert uri != argument
    assert {"code/inference.py", "code/requirements.txt", "model.safetensors"} <= set(members(aws, uri))
    assert not (bare / "code").exists()


@pytest.mark.slow
def test_the_code_of_a_model_is_kept_or_refreshed(
    aws: Aws, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("model.safetensors", "config.json"):
        (old / name).write_bytes((tiny_model / name).read_bytes())
    (old / "code" / "pspnet").mkdir(parents=True)
    (old / "code" / "pspnet" / "__init__.py").write_text("")
    (old / "code" / "inference.py").write_text("# an older version")
    dispatch([*DEPLOY, str(old), "--no_wait", "--endpoint_name", "kept"])
    assert f"note: {old} includes code of another version; --refresh_code replaces it." in capsys.readouterr().err
    dispatch([*DEPLOY, str(old), "--no_wait", "--endpoint_name", "renewed", "--refresh_code"])
    assert "note:" not in capsys.readouterr().err
    kept, renewed = (one["PrimaryContainer"]["ModelDataUrl"] for one in aws.sent("CreateModel"))
    assert "code/requirements.txt" not in members(aws, kept)
    assert "code/requirements.txt" in members(aws, renewed)


def damaged_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "its config.json is not JSON"


def foreign_config(folder: Path) -> str:
    (folder / "config.json").write_text('{"format": "other"}')
    return "has the format 'other'; expected 'pspnet-model-1'"


def built_in(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "model_algo-1")
    (folder / "config.json").unlink()
    return "It is the built-in algorithm's artifact: `pspnet import --from gluoncv` converts it."


def cut_weights(folder: Path) -> str:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "is damaged or truncated"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [damaged_config, foreign_config, built_in, cut_weights])
def test_wrong_models_are_refused_before_anything_is_created(
    spoil: Callable[[Path], str], aws: Aws, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        (copy / name).write_bytes((tiny_model / name).read_bytes())
    expected = spoil(copy)
    assert expected in fails(capsys, str(copy))
    if spoil is not cut_weights:  # a dry run does not read the weights
        assert expected in fails(capsys, str(copy), "--dry_run")
    packed = pack(copy, tmp_path / "spoilt.tar.gz", tuple(path.name for path in copy.iterdir()))
    assert expected in fails(capsys, str(packed))
    assert expected in fails(capsys, upload(aws, packed))
    assert not aws.sent("CreateModel")


@pytest.mark.slow
def test_invalid_archives_and_paths_outside_the_directory(
    aws: Aws, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.tar.gz").write_text("no archive")
    assert "not a readable model archive" in fails(capsys, str(tmp_path / "text.tar.gz"))
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x", arcname="../../etc/x")
    assert "the path '../../etc/x' is outside the model directory" in fails(capsys, str(tmp_path / "evil.tar.gz"))


@pytest.mark.slow
def test_missing_models(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    assert "no such file or folder" in fails(capsys, "some/where")
    assert "no such S3 object" in fails(capsys, f"s3://{BUCKET}/none/model.tar.gz")
    assert "no such S3 bucket" in fails(capsys, "s3://nobodys-bucket/model.tar.gz")
    assert "expected the address of an archive" in fails(capsys, f"s3://{BUCKET}/jobs/")
    assert not aws.sent("CreateModel")
