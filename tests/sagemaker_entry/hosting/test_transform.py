"""Batch transforms against moto: the images on S3 determine the request; fetched masks are named like them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sagemaker.core", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")

from PIL import Image

from pspnet.errors import DataError
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.commands import dispatch
from sagemaker_entry.hosting.transform_files import fetch_masks
from tests.sagemaker_entry.conftest import ROLE, Aws
from tests.sagemaker_entry.hosting.hosting_fixtures import BUCKET, pack, save_tiny_model, upload

IMAGES, MASKS = f"s3://{BUCKET}/frames", f"s3://{BUCKET}/masks/"
TRANSFORM = ["transform", "--role", ROLE, "--output", MASKS]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transform")
    return pack(
        save_tiny_model(folder / "model"), folder / "model.tar.gz", ("code", "config.json", "model.safetensors")
    )


@pytest.fixture
def model(aws: Aws, archive: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    uri = upload(aws, archive)
    put(aws, "frames/a.jpg", b"a" * 100)
    put(aws, "frames/left/b.jpg", b"b" * 200)
    aws.requests.clear()
    return uri


def put(aws: Aws, key: str, content: bytes) -> None:
    aws.session.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)


def only(aws: Aws, operation: str) -> dict[str, Any]:
    (request,) = aws.sent(operation)
    return request


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert run_guarded(dispatch, [*TRANSFORM, *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.rstrip("\n").split("\n")[-1]


@pytest.mark.slow
def test_a_model_is_created_for_the_transform_and_removed(aws: Aws, model: str, capsys: pytest.CaptureFixture) -> None:
    assert dispatch([*TRANSFORM, model, IMAGES]) == 0
    request = only(aws, "CreateTransformJob")
    assert request["ModelName"] == request["TransformJobName"] == only(aws, "CreateModel")["ModelName"]
    assert request["TransformInput"]["DataSource"]["S3DataSource"] == {
        "S3DataType": "S3Prefix",
        "S3Uri": f"{IMAGES}/",
    }
    assert request["TransformInput"]["ContentType"] == "image/jpeg"
    assert request["TransformResources"] == {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}
    assert request["TransformOutput"] == {
        "S3OutputPath": MASKS, "Accept": "image/png; palette=true", "AssembleWith": "None",
    }  # fmt: skip
    assert aws.session.client("sagemaker").list_models()["Models"] == []
    out = capsys.readouterr().out
    assert ", 2 images, model " in out
    assert f"named like {MASKS}a.jpg.out" in out


@pytest.mark.slow
def test_an_existing_model_is_used_and_kept(aws: Aws, model: str) -> None:
    client = aws.session.client("sagemaker")
    client.create_model(ModelName="ours", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})
    aws.requests.clear()
    assert dispatch([*TRANSFORM, "ours", IMAGES, "--no_wait"]) == 0
    assert only(aws, "CreateTransformJob")["ModelName"] == "ours"
    assert not aws.sent("CreateModel")
    assert [one["ModelName"] for one in client.list_models()["Models"]] == ["ours"]


@pytest.mark.slow
def test_fetched_masks_are_named_like_their_images(
    aws: Aws, model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), 2, np.uint8)).save(buffer, format="PNG")
    put(aws, "masks/a.jpg.out", buffer.getvalue())
    put(aws, "masks/left/b.jpg.out", buffer.getvalue())
    folder = tmp_path / "fetched"
    assert dispatch([*TRANSFORM, model, IMAGES, "--fetch", str(folder)]) == 0
    assert np.asarray(Image.open(folder / "a.png")).tolist() == [[2] * 6] * 4
    assert (folder / "left" / "b.png").read_bytes() == buffer.getvalue()
    assert capsys.readouterr().out.endswith(f"2 masks in {folder}\n")
    aws.session.client("s3").delete_object(Bucket=BUCKET, Key="masks/a.jpg.out")
    assert f"{MASKS}: no mask of a.jpg." in fails(capsys, model, IMAGES, "--fetch", str(folder))


@pytest.mark.slow
def test_object_names_outside_the_folder_are_refused(aws: Aws, model: str, tmp_path: Path) -> None:
    s3 = aws.session.client("s3")
    for name in ("../evil.jpg", "/etc/evil.jpg"):
        with pytest.raises(DataError, match="its path is outside the folder"):
            fetch_masks(s3, MASKS, [name], str(tmp_path / "folder"))
    with pytest.raises(DataError, match=r"a\.jpg, a\.png: their masks would all be named"):
        fetch_masks(s3, MASKS, ["a.jpg", "a.png"], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_images_on_s3_are_checked_first(aws: Aws, model: str, capsys: pytest.CaptureFixture) -> None:
    assert "no objects on S3" in fails(capsys, model, f"s3://{BUCKET}/empty")
    assert "no such S3 bucket" in fails(capsys, model, "s3://nobodys-bucket/frames")
    put(aws, "frames/notes.txt", b"x")
    line = fails(capsys, model, IMAGES)
    assert f"{IMAGES}/: found notes.txt, and a batch transform reads every object as an image" in line
    assert not aws.sent("CreateModel") + aws.sent("CreateTransformJob")


@pytest.mark.slow
def test_large_images(aws: Aws, model: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagemaker_entry.hosting.transform.MOST_MEGABYTES", 0)
    assert "a.jpg (100 bytes), left/b.jpg (200 bytes) exceeds the limit of a batch transform" in fails(
        capsys, model, IMAGES
    )


@pytest.mark.slow
def test_a_refused_or_failed_transform_leaves_no_model(aws: Aws, model: str, capsys: pytest.CaptureFixture) -> None:
    aws.refuse("CreateTransformJob", "ResourceLimitExceeded", "limit 'ml.m5.xlarge for transform job usage' is 0")
    assert "`ml.m5.xlarge for transform job usage`" in fails(capsys, model, IMAGES)
    del aws.refusals["CreateTransformJob"]
    aws.answers["DescribeTransformJob"] = lambda _: {
        "TransformJobStatus": "Failed",
        "FailureReason": "ClientError: See job logs",
    }
    line = fails(capsys, model, IMAGES)
    assert "has failed: ClientError: See job logs. Earlier masks are in" in line
    assert aws.session.client("sagemaker").list_models()["Models"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["frames"], "images: found 'frames'"),
        ([MASKS], "output: the same folder as the images"),
        ([IMAGES, "--concurrent", "0"], "concurrent: found '0'"),
        ([IMAGES, "--fetch", "x", "--no_wait"], "fetch: given with no_wait"),
        ([IMAGES, "--instance_type", "ml.t2.xlarge"], "does not list it for SageMaker batch transform"),
        ([IMAGES, "--workers", "0"], "workers: found '0'"),
    ],
)
def test_user_errors_send_nothing(
    argv: list[str], expected: str, aws: Aws, model: str, capsys: pytest.CaptureFixture
) -> None:
    assert expected in fails(capsys, model, *argv)
    assert aws.requests == []


@pytest.mark.slow
def test_unknown_models(aws: Aws, model: str, capsys: pytest.CaptureFixture) -> None:
    assert "none: no SageMaker model or training job of this name." in fails(capsys, "none", IMAGES)


def test_the_dry_run_needs_no_account(capsys: pytest.CaptureFixture) -> None:
    assert dispatch([*TRANSFORM, "s3://b/model.tar.gz", IMAGES, "--region", "eu-west-1", "--dry_run"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert list(printed) == ["CreateModel", "CreateTransformJob"]
    assert "content type and payload are placeholders" in captured.err
