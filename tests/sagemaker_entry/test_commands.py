"""SageMaker command line: both entry points, any working directory, dry run without credentials, missing packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pspnet.cli import dispatch as pspnet_cli
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry import commands as cli
from tests.sagemaker_entry.training.test_job_request import VOC, VOC_HYPERPARAMETERS

ROOT = Path(__file__).resolve().parents[2]
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
CHANNELS = ["train", "train_annotation", "validation", "validation_annotation"]


@pytest.fixture
def sdk() -> None:
    pytest.importorskip("sagemaker.train", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")


def dry_run(capsys: pytest.CaptureFixture, *argv: str) -> tuple[dict[str, Any], str]:
    assert cli.dispatch(["train", "--dry_run", *argv]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.mark.slow
def test_the_dry_run_of_the_users_job_without_credentials(sdk: None, tmp_path: Path) -> None:
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    # A proxy that does not exist: any network access would fail.
    variables.update(
        HTTPS_PROXY="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9", AWS_EC2_METADATA_DISABLED="true"
    )
    command = [sys.executable, "-m", "sagemaker_entry", "train", "--config", VOC, "--dry_run", "--role", ROLE]
    command += ["--region", "ap-northeast-1", "--num_training_samples", "1464"]
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    request = json.loads(result.stdout)
    assert request["HyperParameters"] == {**VOC_HYPERPARAMETERS, "num_training_samples": "1464"}
    image = "763104351884.dkr.ecr.ap-northeast-1.amazonaws.com/pytorch-training:1.12.1-gpu-py38"
    assert request["AlgorithmSpecification"]["TrainingImage"] == image
    assert request["RoleArn"] == ROLE
    assert request["TrainingJobName"].startswith("xporter-segmentation-20")
    assert request["ResourceConfig"] == {"InstanceType": "ml.p2.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 360000}
    bucket = "s3://sagemaker-ap-northeast-1-123456789012/xporter-segmentation"
    uris = {one["ChannelName"]: one["DataSource"]["S3DataSource"]["S3Uri"] for one in request["InputDataConfig"]}
    assert [uris[name] for name in CHANNELS] == [f"{bucket}/{name}/" for name in CHANNELS]
    assert list(uris)[4:] == ["code", "sm_drivers"]
    assert "AWS has retired the P2 family" in result.stderr
    assert "early_stopping has no effect" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_the_dry_run_reports_placeholders(sdk: None, capsys: pytest.CaptureFixture) -> None:
    request, told = dry_run(capsys, "--config", VOC)
    assert request["RoleArn"] == "arn:aws:iam::ACCOUNT_ID:role/ROLE"
    for text in (
        "us-east-1 is a placeholder; give --region",
        "give --role with its ARN",
        "give --bucket",
        "will be counted",
    ):
        assert text in told
    _, told = dry_run(
        capsys,
        "--config",
        VOC,
        "--role",
        ROLE,
        "--region",
        "eu-west-1",
        "--num_training_samples=9",
        "--label_map=s3://b/l",
    )
    assert "dry run" not in told


def test_the_dry_run_counts_local_data_and_uploads_nothing(
    sdk: None, data: Path, capsys: pytest.CaptureFixture
) -> None:
    request, _ = dry_run(capsys, "--data", str(data), "--num_classes", "7", "--bucket", "ours", "--prefix", "cars")
    assert request["HyperParameters"] == {"num_classes": "7", "num_training_samples": "4"}
    uris = [one["DataSource"]["S3DataSource"]["S3Uri"] for one in request["InputDataConfig"]]
    assert uris[:2] == ["s3://ours/cars/train/", "s3://ours/cars/train_annotation/"]


def test_a_given_image_is_used(sdk: None, capsys: pytest.CaptureFixture) -> None:
    image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/our-own:3"
    request, _ = dry_run(capsys, "--config", VOC, "--image_uri", image, "--instance_type", "ml.g5.xlarge")
    assert request["AlgorithmSpecification"]["TrainingImage"] == image


def test_user_errors_are_one_message_and_exit_code_2(sdk: None, capsys: pytest.CaptureFixture) -> None:
    for argv, expected in (
        (["--config", VOC, "--learning_rte", "1"], "did you mean learning_rate?"),
        (["--config", VOC, "--max_run", "0"], "max_run: found '0'"),
        (["--config", VOC, "--instance_type", "ml.g5.huge"], "unknown ml.g5.huge"),
        (["--config", VOC, "--data", "/none"], "no such folder '/none/train'"),
        (["--config", "/none.yaml"], "cannot read /none.yaml"),
        (["--epochs", "3"], "num_classes: missing"),
        (["--config", VOC, "--instnce_type", "x", "--epochs", "0"], "did you mean instance_type?\n  epochs: found '0'"),
    ):
        assert run_guarded(cli.dispatch, ["train", "--dry_run", *argv]) == 2
        captured = capsys.readouterr()
        assert expected in captured.err
        assert captured.out == ""


def test_pspnet_sagemaker_is_the_same_command(sdk: None, capsys: pytest.CaptureFixture) -> None:
    assert pspnet_cli.dispatch(["sagemaker", "train", "--config", VOC, "--dry-run", "--epochs", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["HyperParameters"]["epochs"] == "3"


@pytest.mark.parametrize("command", ["train", "rehearse", "upload"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        pspnet_cli.dispatch(["sagemaker", command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: pspnet sagemaker {command}")
    assert ("--instance_type" in out) == (command != "upload")


def test_help_lists_every_training_setting(sdk: None, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.dispatch(["train", "--config", VOC, "--print_config", "--epochs", "3"])
    assert "\nepochs: 3\n" in capsys.readouterr().out


def test_upload_takes_no_settings(capsys: pytest.CaptureFixture) -> None:
    assert run_guarded(cli.dispatch, ["upload", "folder", "--epochs", "3"]) == 2
    assert "epochs: unknown key (flag --epochs)" in capsys.readouterr().err


def test_the_list_of_commands_and_unknown_ones(capsys: pytest.CaptureFixture) -> None:
    assert cli.dispatch(["--help"], "pspnet sagemaker") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: pspnet sagemaker COMMAND")
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert run_guarded(cli.dispatch, ["deplyo"]) == 2
    assert "unknown command 'deplyo'; did you mean deploy?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "missing"), [(["train", "--config", VOC], "sagemaker and boto3"), (["upload", "folder"], "boto3")]
)
def test_missing_packages_report_the_extra(
    argv: list[str], missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pspnet.system.optional_packages.find_spec", lambda name: None)
    assert run_guarded(cli.dispatch, argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: this command needs {missing}, which")
    assert 'pip install "pspnet[sagemaker]"' in error


def test_neither_the_commands_nor_the_request_needs_aws_packages_or_torch() -> None:
    code = (
        "import sys, sagemaker_entry.commands\n"
        "import sagemaker_entry.training.job_request, sagemaker_entry.training.training_images\n"
        "loaded = {'torch', 'sagemaker', 'boto3', 'botocore'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
