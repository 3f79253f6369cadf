"""Deploying against moto: from every kind of model to an endpoint; updates; and every failure leaves nothing behind."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sagemaker.core", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")

from pspnet.entry import run_guarded
from sagemaker_entry.cli import dispatch
from tests.sagemaker_entry.conftest import REGION, ROLE, Aws
from tests.sagemaker_entry.hosting_fixtures import ARCHIVE, BUCKET, DEPLOY, STAMP, pack, save_tiny_model, upload


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("deploy") / "model")


@pytest.fixture
def archive(model: Path, tmp_path: Path) -> Path:
    return pack(model, tmp_path / "model.tar.gz", ("code", "config.json", "model.safetensors"))


@pytest.fixture
def stored(aws: Aws, archive: Path) -> str:
    return upload(aws, archive)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def only(aws: Aws, operation: str) -> dict[str, Any]:
    (request,) = aws.sent(operation)
    return request


def names_in(aws: Aws) -> tuple[list[str], list[str], list[str]]:
    client = aws.session.client("sagemaker")
    return (
        [item["EndpointName"] for item in client.list_endpoints()["Endpoints"]],
        [item["EndpointConfigName"] for item in client.list_endpoint_configs()["EndpointConfigs"]],
        [item["ModelName"] for item in client.list_models()["Models"]],
    )


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The last line of a failing deployment."""
    capsys.readouterr()
    assert run_guarded(dispatch, [*DEPLOY, *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = error.rstrip("\n").split("\n")
    assert lines[-1].startswith("error: "), error
    return lines[-1]


def members(aws: Aws, uri: str) -> list[str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    body = aws.session.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return tar.getnames()


def test_an_archive_on_s3_that_is_complete_is_deployed_from_where_it_is(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture
) -> None:
    assert dispatch([*DEPLOY, stored]) == 0
    assert only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"] == stored
    assert not aws.sent("PutObject") + aws.sent("CreateMultipartUpload")
    endpoint = only(aws, "CreateEndpoint")["EndpointName"]
    assert re.fullmatch(f"xporter-segmentation-{STAMP}", endpoint)
    assert names_in(aws) == ([endpoint], [endpoint], [endpoint])
    out = capsys.readouterr().out
    assert f"Endpoint: {endpoint}\nConsole: https://{REGION}.console.aws.amazon.com/" in out
    assert "[InService] after 0 s" in out
    assert f"python -m sagemaker_entry predict {endpoint} IMAGE" in out
    assert "It costs ml.t2.xlarge x 1 by the hour until it is deleted. Delete it with: " in out
    assert out.endswith(f"python -m sagemaker_entry delete {endpoint}\n")


def test_what_is_sent_is_what_the_dry_run_prints(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    options = ["--endpoint_name", "cars", "--max_instances", "3", "--data_capture", "10", "--tag", "team=cars"]
    assert dispatch([*DEPLOY, stored, *options, "--dry_run", "--bucket", BUCKET]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert aws.requests == []
    assert dispatch([*DEPLOY, stored, *options]) == 0

    def without_date(value: Any) -> Any:
        return json.loads(re.sub(STAMP, "DATE", json.dumps(value)))

    for operation, request in printed.items():
        assert without_date(only(aws, operation)) == without_date(request), operation


def test_a_job_is_deployed_by_its_name(aws: Aws, stored: str) -> None:
    job = {"TrainingJobName": "cars-1", "TrainingJobStatus": "Completed"}
    aws.answers["DescribeTrainingJob"] = lambda _: {**job, "ModelArtifacts": {"S3ModelArtifacts": stored}}
    assert dispatch([*DEPLOY, "cars-1", "--no_wait"]) == 0
    assert only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"] == stored


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"TrainingJobStatus": "InProgress"}, "the job cars-1 is still running; deploy it when it has completed."),
        ({"TrainingJobStatus": "Failed", "FailureReason": "label 9"}, "the job cars-1 failed, so it left no model to"),
        ({"TrainingJobStatus": "Stopped"}, "the job cars-1 is Stopped and left no model"),
    ],
)
def test_jobs_without_a_model(aws: Aws, job: dict[str, Any], said: str, capsys: pytest.CaptureFixture) -> None:
    aws.answers["DescribeTrainingJob"] = lambda _: {"TrainingJobName": "cars-1", **job}
    assert said in fails(capsys, "cars-1")
    assert not aws.sent("CreateModel")


def test_a_missing_job(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    assert "Could not find training job" in fails(capsys, "cars-1")


def test_a_model_directory_is_packed_and_uploaded(aws: Aws, model: Path) -> None:
    before = sorted(str(path) for path in model.rglob("*"))
    assert dispatch([*DEPLOY, str(model), "--endpoint_name", "cars"]) == 0
    uri = only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"]
    assert re.fullmatch(rf"s3://{BUCKET}/xporter-segmentation/models/cars-{STAMP}/model\.tar\.gz", uri)
    found = members(aws, uri)
    assert {"code/inference.py", "code/pspnet/__init__.py", "config.json", "model.safetensors"} <= set(found)
    assert not [name for name in found if "__pycache__" in name]
    assert sorted(str(path) for path in model.rglob("*")) == before


@pytest.mark.parametrize("place", ["directory", "archive", "s3"])
def test_a_model_without_code_gets_it(
    place: str, aws: Aws, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        (bare / name).write_bytes((model / name).read_bytes())
    packed = pack(bare, tmp_path / "bare.tar.gz", ("model.safetensors", "config.json"))
    argument = {"directory": str(bare), "archive": str(packed), "s3": ARCHIVE}[place]
    if place == "s3":
        upload(aws, packed)
    assert dispatch([*DEPLOY, argument, "--no_wait"]) == 0
    uri = only(aws, "CreateModel")["PrimaryContainer"]["ModelDataUrl"]
    assert uri != argument
    assert {"code/inference.py", "code/requirements.txt", "model.safetensors"} <= set(members(aws, uri))
    assert not (bare / "code").exists()


def test_the_code_of_a_model_is_kept_or_renewed(
    aws: Aws, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("model.safetensors", "config.json"):
        (old / name).write_bytes((model / name).read_bytes())
    (old / "code" / "pspnet").mkdir(parents=True)
    (old / "code" / "pspnet" / "__init__.py").write_text("")
    (old / "code" / "inference.py").write_text("# an older version")
    dispatch([*DEPLOY, str(old), "--no_wait", "--endpoint_name", "kept"])
    assert f"note: {old} carries code of another version; --refresh_code replaces it." in capsys.readouterr().err
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
    return "of the format 'other'; expected 'pspnet-model-1'"


def built_in(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "model_algo-1")
    (folder / "config.json").unlink()
    return "It looks like the built-in algorithm's artifact."


def cut_weights(folder: Path) -> str:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "is damaged or truncated"


@pytest.mark.parametrize("spoil", [damaged_config, foreign_config, built_in, cut_weights])
def test_wrong_models_are_refused_before_anything_is_created(
    spoil: Callable[[Path], str], aws: Aws, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        (copy / name).write_bytes((model / name).read_bytes())
    said = spoil(copy)
    assert said in fails(capsys, str(copy))
    if spoil is not cut_weights:  # for which the weights would have to be read
        assert said in fails(capsys, str(copy), "--dry_run")
    packed = pack(copy, tmp_path / "spoilt.tar.gz", tuple(path.name for path in copy.iterdir()))
    assert said in fails(capsys, str(packed))
    assert said in fails(capsys, upload(aws, packed))
    assert not aws.sent("CreateModel")


def test_archives_that_are_none_or_lead_elsewhere(aws: Aws, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.tar.gz").write_text("no archive")
    assert "not a readable model archive" in fails(capsys, str(tmp_path / "text.tar.gz"))
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x", arcname="../../etc/x")
    assert "holds the path '../../etc/x', which leads out" in fails(capsys, str(tmp_path / "evil.tar.gz"))


def test_models_that_are_not_there(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    assert "there is no such file or folder" in fails(capsys, "some/where")
    assert "S3 holds no such object" in fails(capsys, f"s3://{BUCKET}/none/model.tar.gz")
    assert "there is no S3 bucket" in fails(capsys, "s3://nobodys-bucket/model.tar.gz")
    assert "expected the address of an archive" in fails(capsys, f"s3://{BUCKET}/jobs/")
    assert not aws.sent("CreateModel")


def test_an_existing_name_is_refused_unless_it_is_to_be_updated(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture
) -> None:
    assert "there is no endpoint cars to update" in fails(capsys, stored, "--endpoint_name", "cars", "--update")
    assert dispatch([*DEPLOY, stored, "--endpoint_name", "cars"]) == 0
    aws.requests.clear()
    assert "there is already an endpoint cars (InService); give --update" in fails(
        capsys, stored, "--endpoint_name", "cars"
    )
    assert not aws.sent("CreateModel")


class Updating:
    """UpdateEndpoint, which moto does not have: the endpoint then names the new configuration, or goes back."""

    def __init__(self, aws: Aws, works: bool = True) -> None:
        self.aws, self.works, self.config = aws, works, None
        self.describe = aws.session.client("sagemaker").describe_endpoint
        aws.answers["UpdateEndpoint"] = self.update

    def update(self, parameters: dict[str, Any]) -> dict[str, Any]:
        del self.aws.answers["UpdateEndpoint"]
        found = self.describe(EndpointName=parameters["EndpointName"])
        states = iter(["Updating", "InService"] if self.works else ["Updating", "RollingBack", "InService"])

        def described(_: dict[str, Any]) -> dict[str, Any]:
            found["EndpointStatus"] = next(states)
            if found["EndpointStatus"] == "InService" and self.works:
                found["EndpointConfigName"] = parameters["EndpointConfigName"]
            elif not self.works:
                found["FailureReason"] = "the container did not answer /ping"
            return dict(found)

        self.aws.answers["DescribeEndpoint"] = described
        return {"EndpointArn": found["EndpointArn"]}


def test_an_update_gives_the_endpoint_the_new_model_and_removes_the_old_one(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagemaker_entry.deploy.unique_name", lambda base, stamp: f"{base}-1")
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars", "--max_instances", "2"])
    monkeypatch.setattr("sagemaker_entry.deploy.unique_name", lambda base, stamp: f"{base}-2")
    Updating(aws)
    assert dispatch([*DEPLOY, stored, "--endpoint_name", "cars", "--update", "--instance_type", "ml.c5.xlarge"]) == 0
    assert only(aws, "UpdateEndpoint") == {"EndpointName": "cars", "EndpointConfigName": "cars-2"}
    assert names_in(aws) == (["cars"], ["cars-2"], ["cars-2"])
    assert len(aws.sent("DeregisterScalableTarget")) == 1
    out = capsys.readouterr().out
    assert "[Updating] after 0 s\n[InService] after 0 s" in out
    assert "Deleted the endpoint configuration cars-1\nDeleted the model cars-1" in out


def test_an_update_that_fails_leaves_the_old_model(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagemaker_entry.deploy.unique_name", lambda base, stamp: f"{base}-1")
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars"])
    monkeypatch.setattr("sagemaker_entry.deploy.unique_name", lambda base, stamp: f"{base}-2")
    Updating(aws, works=False)
    line = fails(capsys, stored, "--endpoint_name", "cars", "--update")
    assert line == (
        "error: the endpoint cars failed (InService): the container did not answer /ping. It still has the model that "
        "it had before."
    )
    assert names_in(aws) == (["cars"], ["cars-1"], ["cars-1"])


def test_foreign_and_serverless_endpoints_are_not_updated(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    client = aws.session.client("sagemaker")
    client.create_model(ModelName="theirs", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})
    variant = {"VariantName": "v", "ModelName": "theirs", "InitialInstanceCount": 1, "InstanceType": "ml.t2.medium"}
    client.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")
    aws.requests.clear()
    line = fails(capsys, stored, "--endpoint_name", "theirs", "--update")
    assert "the endpoint theirs was not made by this project, so it is left alone." in line
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars"])
    assert "is on machines, and SageMaker does not change that" in fails(
        capsys, stored, "--endpoint_name", "cars", "--update", "--serverless"
    )


QUOTA = (
    "The account-level service limit 'ml.t2.xlarge for endpoint usage' is 0 Instances, with current utilization of 0 "
    "Instances and a request delta of 1 Instances."
)


@pytest.mark.parametrize(
    ("operation", "code", "message", "said"),
    [
        ("CreateEndpoint", "ResourceLimitExceeded", QUOTA, "(Amazon SageMaker, `ml.t2.xlarge for endpoint usage`)"),
        ("CreateEndpointConfig", "AccessDeniedException", "not authorized to perform x", "the policy in docs/"),
        ("CreateModel", "ValidationException", "Could not assume role", "cannot take on the role"),
        ("CreateEndpointConfig", "ValidationException", "Invalid InstanceType", "does not know or offer ml.t2.xlarge"),
    ],
)
def test_a_refusal_half_way_leaves_nothing(
    operation: str, code: str, message: str, said: str, aws: Aws, stored: str, capsys: pytest.CaptureFixture
) -> None:
    aws.refuse(operation, code, message)
    assert said in fails(capsys, stored)
    assert names_in(aws) == ([], [], [])


def test_what_cannot_be_removed_again_is_named(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    aws.refuse("CreateEndpoint", "ResourceLimitExceeded", QUOTA)
    aws.refuse("DeleteModel", "AccessDeniedException", "not authorized to perform sagemaker:DeleteModel")
    assert run_guarded(dispatch, [*DEPLOY, stored, "--endpoint_name", "cars"]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"perhaps still there: endpoint configuration cars-{STAMP}, model cars-{STAMP}\.", error)
    assert error.rstrip("\n").split("\n")[-1].startswith("error: creating the endpoint: the account's quota")


def test_an_endpoint_that_fails_is_removed_with_its_log_shown(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture
) -> None:
    logs = aws.session.client("logs")
    group = "/aws/sagemaker/Endpoints/cars"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
    import time

    event = {"timestamp": int(time.time() * 1000), "message": "ModuleNotFoundError: safetensors"}
    logs.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=[event])
    describe = aws.session.client("sagemaker").describe_endpoint
    states = iter(["Creating", "Failed"])

    def described(parameters: dict[str, Any]) -> Any:
        del aws.answers["DescribeEndpoint"]
        try:
            found = describe(**parameters)
        finally:
            aws.answers["DescribeEndpoint"] = described
        state = next(states, None)
        return found if state is None else {**found, "EndpointStatus": state, "FailureReason": "no answer to /ping"}

    aws.answers["DescribeEndpoint"] = described
    assert run_guarded(dispatch, [*DEPLOY, stored, "--endpoint_name", "cars"]) == 1
    captured = capsys.readouterr()
    assert "[Creating] after 0 s\n[Failed] after 0 s" in captured.out
    assert "  ModuleNotFoundError: safetensors" in captured.err
    assert "error: the endpoint cars failed (Failed): no answer to /ping." in captured.err
    del aws.answers["DescribeEndpoint"]
    assert names_in(aws) == ([], [], [])


def test_ctrl_c_while_waiting_says_that_it_costs(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sagemaker_entry.deploy.follow_endpoint", interrupted)
    assert dispatch([*DEPLOY, stored, "--endpoint_name", "cars"]) == 130
    assert "and costs. Delete it with: python -m sagemaker_entry delete cars" in capsys.readouterr().err
    assert names_in(aws)[0] == ["cars"]


def test_autoscaling_is_set_when_the_endpoint_is_in_service(aws: Aws, stored: str) -> None:
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars", "--max_instances", "3", "--target_invocations", "90"])
    client = aws.session.client("application-autoscaling")
    (target,) = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["ResourceId"], target["MinCapacity"], target["MaxCapacity"]) == (
        "endpoint/cars/variant/AllTraffic", 1, 3,
    )  # fmt: skip
    (policy,) = client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 90.0


def test_no_credentials_and_no_region(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert "found no AWS region" in fails(capsys, stored)
    assert "found no AWS credentials" in fails(capsys, stored, "--region", REGION)


def test_the_names_of_the_model_directory_are_those_of_the_package() -> None:
    from pspnet.serving import artifact, bundle
    from sagemaker_entry import model_check

    assert (model_check.FORMAT, model_check.WEIGHTS_NAME, model_check.CONFIG_NAME) == (
        artifact.FORMAT, artifact.WEIGHTS_NAME, artifact.CONFIG_NAME,
    )  # fmt: skip
    assert (model_check.CODE_NAME, model_check.ARCHIVE_NAME) == (bundle.CODE_NAME, bundle.ARCHIVE_NAME)
