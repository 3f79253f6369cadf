"""Upload against moto's server: sent, skipped and refused files."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from pspnet.errors import DataError
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.aws.aws_errors import AwsError
from sagemaker_entry.aws.s3_objects import list_objects
from sagemaker_entry.aws.session import find_bucket
from sagemaker_entry.commands import dispatch
from sagemaker_entry.training.job_settings import JobSettings
from sagemaker_entry.training.upload import channel_files, count_images, find_channels, upload_channels
from tests.sagemaker_entry.conftest import ACCOUNT, REGION, Aws

BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"


def keys(aws: Aws, prefix: str = "xporter-segmentation/") -> set[str]:
    return {key[len(prefix) :] for key in list_objects(aws.session.client("s3"), BUCKET, prefix)}


def test_all_channels_are_uploaded_unchanged_to_the_default_bucket(
    aws: Aws, data: Path, capsys: pytest.CaptureFixture
) -> None:
    (data / "train" / ".DS_Store").write_text("x")
    (data / "train" / "notes.txt").write_text("x")
    assert dispatch(["upload", str(data)]) == 0
    expected = {
        f"{folder.name}/{path.name}"
        for folder in data.iterdir()
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix in (".jpg", ".png", ".json") and path.name[0] != "."
    }
    assert keys(aws) == expected
    assert len(expected) >= 12
    s3 = aws.session.client("s3")
    for name in expected:
        body = s3.get_object(Bucket=BUCKET, Key=f"xporter-segmentation/{name}")["Body"].read()
        assert body == (data / name).read_bytes()
    out = capsys.readouterr().out
    assert f"Created the bucket {BUCKET}." in out
    assert f"s3://{BUCKET}/xporter-segmentation/train/: 4 files sent" in out
    assert f"--data s3://{BUCKET}/xporter-segmentation" in out


@pytest.mark.slow
def test_every_file_is_sent_with_its_sha256(aws: Aws, data: Path) -> None:
    dispatch(["upload", str(data), "--skip_check"])
    for request in aws.sent("PutObject"):
        name = request["Key"][len("xporter-segmentation/") :]
        digest = base64.b64encode(hashlib.sha256((data / name).read_bytes()).digest()).decode()
        assert request["ChecksumSHA256"] == digest


@pytest.mark.slow
def test_a_second_upload_sends_only_what_changed(aws: Aws, data: Path, capsys: pytest.CaptureFixture) -> None:
    dispatch(["upload", str(data), "--skip_check"])
    aws.requests.clear()
    assert dispatch(["upload", str(data), "--skip_check"]) == 0
    assert aws.sent("PutObject") == []
    assert "0 files sent (0 bytes), 4 unchanged." in capsys.readouterr().out
    changed = sorted((data / "train_annotation").iterdir())[0]
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1  # the same size, so only a checksum shows the change
    changed.write_bytes(content)
    aws.requests.clear()
    dispatch(["upload", str(data), "--skip_check"])
    assert [request["Key"] for request in aws.sent("PutObject")] == [
        f"xporter-segmentation/train_annotation/{changed.name}"
    ]


def test_an_interrupted_upload_resumes(aws: Aws, data: Path) -> None:
    settings, bucket = JobSettings(), find_bucket(aws.session, JobSettings())
    upload_channels(aws.session, {"train": data / "train"}, settings, bucket)
    aws.session.client("s3").delete_object(
        Bucket=bucket, Key=f"xporter-segmentation/train/{sorted((data / 'train').iterdir())[1].name}"
    )
    done = upload_channels(aws.session, {"train": data / "train"}, settings, bucket)["train"]
    assert (done.sent, done.skipped) == (1, 3)


def test_objects_with_an_unusable_tag_are_compared_by_sha256(
    aws: Aws, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, bucket = JobSettings(), find_bucket(aws.session, JobSettings())
    upload_channels(aws.session, {"train": data / "train"}, settings, bucket)
    # With a KMS key an object's tag is not an MD5.
    found = list_objects(aws.session.client("s3"), bucket, "xporter-segmentation/train/")
    monkeypatch.setattr(
        "sagemaker_entry.training.upload.list_objects",
        lambda *_: {key: (size, "0" * 32) for key, (size, _) in found.items()},
    )
    aws.requests.clear()
    done = upload_channels(aws.session, {"train": data / "train"}, settings, bucket)["train"]
    assert (done.sent, done.skipped) == (0, 4)
    assert len(aws.sent("HeadObject")) == 4


def test_a_named_bucket_and_prefix(aws: Aws, data: Path) -> None:
    aws.session.client("s3").create_bucket(Bucket="ours", CreateBucketConfiguration={"LocationConstraint": REGION})
    assert dispatch(["upload", str(data), "--skip-check", "--bucket", "ours", "--prefix", "/cars/"]) == 0
    assert count_images(aws.session.client("s3"), "s3://ours/cars/train/") == 4
    assert count_images(aws.session.client("s3"), "s3://ours/cars/validation/") == 2
    assert all(request["Bucket"] == "ours" for request in aws.sent("PutObject"))


def test_objects_without_a_file_are_reported(aws: Aws, data: Path, capsys: pytest.CaptureFixture) -> None:
    dispatch(["upload", str(data), "--skip_check"])
    gone = sorted((data / "validation").iterdir())[0]
    gone.unlink()
    capsys.readouterr()
    dispatch(["upload", str(data), "--skip_check"])
    error = capsys.readouterr().err
    assert f"has 1 objects that are not in {data / 'validation'} ({gone.name})" in error


def test_bad_data_are_not_uploaded(aws: Aws, data: Path, capsys: pytest.CaptureFixture) -> None:
    sorted((data / "train_annotation").iterdir())[0].unlink()
    assert dispatch(["upload", str(data)]) == 1
    captured = capsys.readouterr()
    assert "without an annotation" in captured.out
    assert "nothing was uploaded" in captured.err
    assert aws.requests == []


def test_missing_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        find_channels(tmp_path / "none")
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match="no folder train_annotation and no folder validation_annotation"):
        find_channels(tmp_path)


def test_a_label_map_channel_is_uploaded(data: Path) -> None:
    (data / "label_map").mkdir()
    (data / "label_map" / "train_label_map.json").write_text('{"scale": 1}')
    assert list(find_channels(data))[-1] == "label_map"
    assert [path.name for path in channel_files("label_map", data / "label_map")] == ["train_label_map.json"]


@pytest.mark.slow
def test_a_missing_bucket_is_one_sentence(aws: Aws, data: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_guarded(dispatch, ["upload", str(data), "--skip_check", "--bucket", "nobodys"]) == 1
    assert capsys.readouterr().err == (
        "error: bucket nobodys: no such S3 bucket nobodys; create it (`aws s3 mb`) or give another --bucket.\n"
    )


def test_a_bucket_of_another_account_is_refused(aws: Aws) -> None:
    aws.refuse("HeadBucket", "403", "Forbidden")
    with pytest.raises(AwsError, match=f"bucket {BUCKET}: access denied"):
        find_bucket(aws.session, JobSettings())


def test_a_failed_upload_is_one_sentence(aws: Aws, data: Path, capsys: pytest.CaptureFixture) -> None:
    aws.refuse("PutObject", "AccessDenied", "Access Denied")
    assert run_guarded(dispatch, ["upload", str(data), "--skip_check"]) == 1
    assert "error: uploading train: access denied (Access Denied)" in capsys.readouterr().err
