"""Job submission against moto's server through the SDK's ModelTrainer, and error messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sagemaker.train", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")

from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ProfileNotFound

from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.resources import job_status
from sagemaker_entry.aws.session import boto_session, find_role
from sagemaker_entry.commands import dispatch
from sagemaker_entry.training.job_log import LOG_GROUP, follow_job
from sagemaker_entry.training.job_request import JobContext, build_request
from sagemaker_entry.training.job_settings import JobSettings
from sagemaker_entry.training.submit import quiet_sdk_config
from tests.sagemaker_entry.conftest import ACCOUNT, REGION, ROLE, Aws

ROOT = Path(__file__).resolve().parents[3]
VOC = str(ROOT / "configs" / "voc2012.yaml")
BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"
TRAIN = ["train", "--num_classes", "7", "--role", ROLE, "--instance_type", "ml.g4dn.xlarge", "--no_wait"]


@pytest.fixture
def uploaded(aws: Aws, data: Path) -> Aws:
    assert dispatch(["upload", str(data), "--skip_check"]) == 0
    aws.requests.clear()
    return aws


def created(aws: Aws) -> dict[str, Any]:
    (request,) = aws.sent("CreateTrainingJob")
    return request


def sent_script(aws: Aws, job: str) -> str:
    key = f"xporter-segmentation/{job}/input/sm_drivers/sm_train.sh"
    script: str = aws.session.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()
    return script


@pytest.mark.slow
def test_the_sent_request_matches_the_built_one(uploaded: Aws) -> None:
    spot = ["--spot", "--max_wait", "400000", "--tag", "team=cars", "--metric", "mine=x=([0-9]+)"]
    assert dispatch([*TRAIN, "--learning_rate", "1e-4", "--early_stopping", *spot, "--input_mode", "FastFile"]) == 0
    request = created(uploaded)
    settings = JobSettings(
        instance_type="ml.g4dn.xlarge", spot=True, max_wait=400000, tag=("team=cars",),
        metric=("mine=x=([0-9]+)",), input_mode="FastFile", role=ROLE,
    )  # fmt: skip
    names = ("train", "train_annotation", "validation", "validation_annotation")
    expected = build_request(
        {"num_classes": "7", "learning_rate": "0.0001", "early_stopping": "True", "num_training_samples": "4"},
        {name: f"s3://{BUCKET}/xporter-segmentation/{name}/" for name in names},
        settings,
        JobContext(request["AlgorithmSpecification"]["TrainingImage"], ROLE, BUCKET, request["TrainingJobName"]),
    )
    assert request.keys() == expected.keys()
    for field, value in expected.items():
        assert request[field] == value, field


@pytest.mark.slow
def test_only_the_job_source_is_uploaded(uploaded: Aws) -> None:
    dispatch(TRAIN)
    name = created(uploaded)["TrainingJobName"]
    s3 = uploaded.session.client("s3")
    prefix = f"xporter-segmentation/{name}/input/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    found = [item for page in pages for item in page["Contents"]]
    keys = {item["Key"][len(prefix) :] for item in found}
    needed = ("code/train.py", "code/pspnet/training/launch.py", "code/requirements.txt", "sm_drivers/sm_train.sh")
    assert keys.issuperset(needed)
    assert not [key for key in keys if "tests" in key or "__pycache__" in key or key.startswith("code/docs")]
    assert sum(item["Size"] for item in found) < 2_000_000
    script = sent_script(uploaded, name)
    assert "\nexec $SM_PYTHON_CMD -m pspnet.training.launch\n" in script
    assert "requirements.txt" in script


@pytest.mark.slow
def test_the_sdk_does_not_validate_a_role_with_least_privilege(uploaded: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGEMAKER_VALIDATE_ROLE")
    assert dispatch(TRAIN) == 0
    assert not uploaded.sent("SimulatePrincipalPolicy")
    monkeypatch.delenv("SAGEMAKER_VALIDATE_ROLE")


@pytest.mark.slow
def test_one_command_for_any_number_of_processes(uploaded: Aws) -> None:
    # The same command for all jobs: pspnet.training.launch counts GPUs and hosts in the container.
    dispatch([*TRAIN, "--instance_type", "ml.g4dn.12xlarge", "--instance_count", "2"])
    request = created(uploaded)
    assert request["ResourceConfig"]["InstanceCount"] == 2
    script = sent_script(uploaded, request["TrainingJobName"])
    assert "\nexec $SM_PYTHON_CMD -m pspnet.training.launch\n" in script
    assert "torchrun_driver.py" not in script


@pytest.mark.slow
def test_the_users_job(uploaded: Aws, capsys: pytest.CaptureFixture) -> None:
    assert dispatch(["train", "--config", VOC, "--role", "SageMakerRole", "--no_wait"]) == 0
    request = created(uploaded)
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("pytorch-training:1.12.1-gpu-py38")
    assert request["RoleArn"] == ROLE
    assert request["HyperParameters"]["num_training_samples"] == "4"
    assert len(request["HyperParameters"]) == 16
    captured = capsys.readouterr()
    assert "AWS has retired the P2 family" in captured.err
    assert f"Job: {request['TrainingJobName']}\n" in captured.out
    assert f"region={REGION}#/jobs/{request['TrainingJobName']}" in captured.out


@pytest.mark.slow
def test_local_data_are_checked_uploaded_and_counted(aws: Aws, data: Path) -> None:
    (data / "label_map").mkdir()
    (data / "label_map" / "train_label_map.json").write_text('{"scale": 1}')
    assert dispatch([*TRAIN, "--data", str(data)]) == 0
    request = created(aws)
    assert request["HyperParameters"]["num_training_samples"] == "4"
    assert [one["ChannelName"] for one in request["InputDataConfig"]][4:] == ["label_map", "code", "sm_drivers"]
    sent = [one["Key"] for one in aws.sent("PutObject")]
    assert "xporter-segmentation/label_map/train_label_map.json" in sent
    assert len([key for key in sent if "/train/" in key]) == 4


def test_bad_local_data_send_nothing(aws: Aws, data: Path, capsys: pytest.CaptureFixture) -> None:
    sorted((data / "train_annotation").iterdir())[0].unlink()
    assert run_guarded(dispatch, [*TRAIN, "--data", str(data)]) == 1
    assert "error: the data are not fit for training" in capsys.readouterr().err
    assert not aws.sent("PutObject") + aws.sent("CreateTrainingJob")


@pytest.mark.slow
def test_a_label_map_on_s3_is_added(uploaded: Aws) -> None:
    key = "xporter-segmentation/label_map/train_label_map.json"
    uploaded.session.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    dispatch(TRAIN)
    channels = {one["ChannelName"]: one for one in created(uploaded)["InputDataConfig"]}
    uri = channels["label_map"]["DataSource"]["S3DataSource"]["S3Uri"]
    assert uri == f"s3://{BUCKET}/xporter-segmentation/label_map/"


@pytest.mark.slow
def test_status_and_log_of_a_job(uploaded: Aws, capsys: pytest.CaptureFixture) -> None:
    dispatch(TRAIN)
    name = created(uploaded)["TrainingJobName"]
    status = job_status(uploaded.session.client("sagemaker"), name)
    assert status["TrainingJobStatus"] == "Completed"
    assert status["ResourceConfig"]["VolumeSizeInGB"] == 50
    logs, stream = uploaded.session.client("logs"), f"{name}/algo-1-1"
    logs.create_log_group(logGroupName=LOG_GROUP)
    logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
    lines = ["epoch=1 train:loss=1.2345 learning_rate=1.000e-04", "epoch=1 validation:mIOU=0.1000 [odd] markup"]
    now = int(time.time() * 1000)
    events = [{"timestamp": now + number, "message": line} for number, line in enumerate(lines)]
    logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)
    capsys.readouterr()
    assert follow_job(uploaded.session, name, poll=0.01) == 0
    out = capsys.readouterr().out
    assert "\n".join(lines) in out
    assert out.count(lines[0]) == 1
    assert f"{name}: Completed." in out
    assert "model.tar.gz" in out


@pytest.mark.slow
def test_a_failed_job_raises_its_reason(uploaded: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {
        "TrainingJobName": "j",
        "TrainingJobStatus": "Failed",
        "FailureReason": "AlgorithmError: label 9 in a.png",
    }
    monkeypatch.setattr("sagemaker_entry.training.job_log.job_status", lambda *_: answer)
    with pytest.raises(AwsError, match=r"the job j failed\. AlgorithmError: label 9 in a\.png"):
        follow_job(uploaded.session, "j", poll=0)
    answer["TrainingJobStatus"] = "Stopped"
    assert follow_job(uploaded.session, "j", poll=0) == 1


@pytest.mark.slow
def test_a_lost_network_ends_the_follower_but_not_the_job(uploaded: Aws) -> None:
    lost = EndpointConnectionError(endpoint_url="https://x")
    uploaded.refusals["DescribeLogStreams"] = lost
    dispatch(TRAIN)
    name = created(uploaded)["TrainingJobName"]
    assert follow_job(uploaded.session, name, poll=0) == 0
    uploaded.refusals["DescribeTrainingJob"] = lost
    with pytest.raises(
        AwsError, match=f"AWS cannot be reached .* The job itself keeps running: aws sagemaker .* {name}$"
    ):
        follow_job(uploaded.session, name, poll=0)


@pytest.mark.slow
def test_a_missing_job_is_one_sentence(aws: Aws) -> None:
    with pytest.raises(AwsError, match=r"^describing the job none: .*none"):
        job_status(aws.session.client("sagemaker"), "none")


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """Return the error line of a failing command."""
    assert run_guarded(dispatch, [*TRAIN, *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (
            "ResourceLimitExceeded",
            "The account-level service limit 'ml.g4dn.xlarge for training job usage' is 0 Instances",
            r"quota for ml.g4dn.xlarge is used up or zero (The account-level service limit "
            r"'ml.g4dn.xlarge for training job usage' is 0 Instances); ask for more in the Service Quotas console",
        ),
        (
            "ValidationException",
            f"Could not assume role {ROLE}. Please ensure that the role exists",
            f"SageMaker cannot assume the role {ROLE} (Could not assume role",
        ),
        (
            "ValidationException",
            "1 validation error detected: Value 'ml.g4dn.xlarge' at 'resourceConfig.instanceType' failed",
            "SageMaker does not offer ml.g4dn.xlarge here",
        ),
        ("AccessDeniedException", "User u is not authorized to perform: iam:PassRole", "access denied (User u is not"),
        ("ThrottlingException", "Rate exceeded", "AWS answered ThrottlingException: Rate exceeded"),
        ("ExpiredTokenException", "expired", "the AWS sign-in has expired; run `aws sso login`"),
    ],
)
def test_sagemaker_refusals_are_one_sentence(
    uploaded: Aws, capsys: pytest.CaptureFixture, code: str, message: str, expected: str
) -> None:
    uploaded.refuse("CreateTrainingJob", code, message)
    line = fails(capsys)
    assert line.startswith("error: submitting the job: ")
    assert expected in line


@pytest.mark.slow
def test_wrong_roles(uploaded: Aws, capsys: pytest.CaptureFixture) -> None:
    assert "no such IAM role" in fails(capsys, "--role", "Nobody")
    assert run_guarded(dispatch, [*TRAIN, "--role", "arn:aws:iam::123:role/X"]) == 2
    assert "role: found 'arn:aws:iam::123:role/X'" in capsys.readouterr().err
    uploaded.refuse("GetCallerIdentity", "InvalidClientTokenId", "The security token is invalid")
    with pytest.raises(AwsError, match=r"AWS rejected the credentials"):
        find_role(uploaded.session, JobSettings())


def test_the_default_role_is_that_of_a_notebook(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    class Identity:
        arn = f"arn:aws:iam::{ACCOUNT}:user/me"

        def client(self, service: str) -> Any:
            return self if service == "sts" else aws.session.client(service)

        def get_caller_identity(self) -> dict[str, str]:
            return {"Arn": self.arn, "Account": ACCOUNT}

    with pytest.raises(AwsError, match=r"role: not given, and the caller .*user/me is not a role .* give --role"):
        find_role(Identity(), JobSettings())
    Identity.arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/SageMakerRole/SageMaker"
    assert find_role(Identity(), JobSettings()) == ROLE


@pytest.mark.slow
def test_missing_data_on_s3(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    line = fails(capsys)
    assert f"no objects on S3 for train (s3://{BUCKET}/xporter-segmentation/train/), train_annotation" in line
    assert "upload DATA_DIR" in line
    assert "no such S3 bucket" in fails(capsys, "--data", "s3://nobodys-bucket/set")


def test_unknown_machines_and_impossible_pairs_send_nothing(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    assert "unknown ml.g4dn.tiny" in fails(capsys, "--instance_type", "ml.g4dn.tiny")
    line = fails(capsys, "--instance_type", "ml.p2.xlarge", "--pytorch_version", "2.6.0")
    assert "runs PyTorch up to 1.12.1, and the image has 2.6.0" in line
    assert aws.requests == []


def test_wrong_hyperparameters_send_nothing(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    line = fails(capsys, "--learning_rate", "2", "--epoch", "3")
    assert line.startswith("error: The configuration has 2 problems")
    assert aws.requests == []


@pytest.mark.slow
def test_no_credentials_and_no_region(
    data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = fails(capsys)
    assert line == (
        "error: AWS session: found no AWS region; give --region, set AWS_DEFAULT_REGION, or run `aws configure`."
    )
    assert "found no AWS credentials; run `aws configure`" in fails(capsys, "--region", REGION)
    assert "The config profile (nobody) could not be found" in fails(capsys, "--region", REGION, "--profile", "nobody")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: NoCredentialsError(), "found no AWS credentials"),
        (lambda: ProfileNotFound(profile="x"), "profile"),
        (lambda: EndpointConnectionError(endpoint_url="https://x"), "AWS cannot be reached"),
        (
            lambda: ClientError({"Error": {"Code": "NoSuchBucket", "Message": "m", "BucketName": "b"}}, "o"),
            "no such S3 bucket b;",
        ),
        (
            lambda: ValueError("Must setup local AWS configuration with a region supported by SageMaker."),
            "no AWS region",
        ),
    ],
)
def test_every_aws_error_is_one_sentence(make: Callable[[], Exception], expected: str) -> None:
    with pytest.raises(AwsError, match=r"^a step: ") as caught, aws_errors("a step"):
        raise make()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sdks_role_validation_error_is_one_sentence() -> None:
    from sagemaker.core.helper.iam_role_resolver import RoleValidationError, _build_validation_error_message

    for options, expected in (
        ({"trust_failed": True}, "does not allow 'sagemaker.amazonaws.com' to assume it"),
        ({"missing_actions": ["s3:GetObject"]}, "Missing permissions: s3:GetObject"),
    ):
        with pytest.raises(AwsError) as caught, aws_errors("submitting the job"):
            raise RoleValidationError(_build_validation_error_message(ROLE, "training", **options))
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unexpected_exceptions_are_not_converted() -> None:
    with pytest.raises(KeyError), aws_errors("a step"):
        raise KeyError("x")


def test_the_sdks_telemetry_is_off_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quiet_sdk_config()["SageMaker"]["PythonSDK"]["Modules"]["TelemetryOptOut"] is True
    own = tmp_path / "config.yaml"
    own.write_text("SchemaVersion: '1.0'\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: false\n")
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(own))
    assert quiet_sdk_config()["SageMaker"]["PythonSDK"]["Modules"]["TelemetryOptOut"] is False


def test_the_region_comes_from_the_flag_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert boto_session(JobSettings()).region_name == "eu-west-1"
    assert boto_session(JobSettings(region="us-west-2")).region_name == "us-west-2"
