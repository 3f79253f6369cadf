"""`deploy` against moto: every kind of model, updates, and no leftovers after a failure."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("sagemaker.core", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")

from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.commands import dispatch
from tests.sagemaker_entry.conftest import REGION, ROLE, Aws
from tests.sagemaker_entry.hosting.hosting_fixtures import BUCKET, DEPLOY, STAMP, fails, only


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def names_in(aws: Aws) -> tuple[list[str], list[str], list[str]]:
    client = aws.session.client("sagemaker")
    return (
        [item["EndpointName"] for item in client.list_endpoints()["Endpoints"]],
        [item["EndpointConfigName"] for item in client.list_endpoint_configs()["EndpointConfigs"]],
        [item["ModelName"] for item in client.list_models()["Models"]],
    )


@pytest.mark.slow
def test_a_complete_archive_on_s3_is_deployed_in_place(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
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
    assert "It is billed as ml.t2.xlarge x 1 by the hour until deleted. Delete it with: " in out
    assert out.endswith(f"python -m sagemaker_entry delete {endpoint}\n")


@pytest.mark.slow
def test_the_dry_run_prints_the_sent_requests(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    options = ["--endpoint_name", "cars", "--max_instances", "3", "--data_capture", "10", "--tag", "team=cars"]
    assert dispatch([*DEPLOY, stored, *options, "--dry_run", "--bucket", BUCKET]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert aws.requests == []
    assert dispatch([*DEPLOY, stored, *options]) == 0

    def without_date(value: Any) -> Any:
        return json.loads(re.sub(STAMP, "DATE", json.dumps(value)))

    for operation, request in printed.items():
        assert without_date(only(aws, operation)) == without_date(request), operation


@pytest.mark.slow
def test_an_existing_name_is_refused_without_update(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    assert "no such endpoint cars to update" in fails(capsys, stored, "--endpoint_name", "cars", "--update")
    assert dispatch([*DEPLOY, stored, "--endpoint_name", "cars"]) == 0
    aws.requests.clear()
    assert "the endpoint cars already exists (InService); give --update" in fails(
        capsys, stored, "--endpoint_name", "cars"
    )
    assert not aws.sent("CreateModel")


class Updating:
    """Fake UpdateEndpoint, which moto lacks: the endpoint gets the new configuration, or rolls back."""

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


@pytest.mark.slow
def test_an_update_deploys_the_new_model_and_removes_the_old_one(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagemaker_entry.hosting.deploy.unique_name", lambda base, stamp: f"{base}-1")
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars", "--max_instances", "2"])
    monkeypatch.setattr("sagemaker_entry.hosting.deploy.unique_name", lambda base, stamp: f"{base}-2")
    Updating(aws)
    assert dispatch([*DEPLOY, stored, "--endpoint_name", "cars", "--update", "--instance_type", "ml.c5.xlarge"]) == 0
    assert only(aws, "UpdateEndpoint") == {"EndpointName": "cars", "EndpointConfigName": "cars-2"}
    assert names_in(aws) == (["cars"], ["cars-2"], ["cars-2"])
    assert len(aws.sent("DeregisterScalableTarget")) == 1
    out = capsys.readouterr().out
    assert "[Updating] after 0 s\n[InService] after 0 s" in out
    assert "Deleted the endpoint configuration cars-1\nDeleted the model cars-1" in out


@pytest.mark.slow
def test_a_failed_update_keeps_the_old_model(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagemaker_entry.hosting.deploy.unique_name", lambda base, stamp: f"{base}-1")
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars"])
    monkeypatch.setattr("sagemaker_entry.hosting.deploy.unique_name", lambda base, stamp: f"{base}-2")
    Updating(aws, works=False)
    line = fails(capsys, stored, "--endpoint_name", "cars", "--update")
    assert line == (
        "error: the endpoint cars failed (InService): the container did not answer /ping. It still serves the "
        "previous model."
    )
    assert names_in(aws) == (["cars"], ["cars-1"], ["cars-1"])


@pytest.mark.slow
def test_foreign_and_serverless_endpoints_are_not_updated(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    client = aws.session.client("sagemaker")
    client.create_model(ModelName="theirs", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})
    variant = {"VariantName": "v", "ModelName": "theirs", "InitialInstanceCount": 1, "InstanceType": "ml.t2.medium"}
    client.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")
    aws.requests.clear()
    line = fails(capsys, stored, "--endpoint_name", "theirs", "--update")
    assert "the endpoint theirs was not created by this project, so it is not updated." in line
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars"])
    assert "is on instances, and SageMaker cannot change that" in fails(
        capsys, stored, "--endpoint_name", "cars", "--update", "--serverless"
    )


QUOTA = (
    "The account-level service limit 'ml.t2.xlarge for endpoint usage' is 0 Instances, with current utilization of 0 "
    "Instances and a request delta of 1 Instances."
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "code", "message", "expected"),
    [
        ("CreateEndpoint", "ResourceLimitExceeded", QUOTA, "(Amazon SageMaker, `ml.t2.xlarge for endpoint usage`)"),
        ("CreateEndpointConfig", "AccessDeniedException", "not authorized to perform x", "the policy in docs/"),
        ("CreateModel", "ValidationException", "Could not assume role", "cannot assume the role"),
        ("CreateEndpointConfig", "ValidationException", "Invalid InstanceType", "does not offer ml.t2.xlarge"),
    ],
)
def test_a_refused_request_leaves_no_resources(
    operation: str, code: str, message: str, expected: str, aws: Aws, stored: str, capsys: pytest.CaptureFixture
) -> None:
    aws.refuse(operation, code, message)
    assert expected in fails(capsys, stored)
    assert names_in(aws) == ([], [], [])


@pytest.mark.slow
def test_resources_that_cannot_be_removed_are_reported(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
    aws.refuse("CreateEndpoint", "ResourceLimitExceeded", QUOTA)
    aws.refuse("DeleteModel", "AccessDeniedException", "not authorized to perform sagemaker:DeleteModel")
    assert run_guarded(dispatch, [*DEPLOY, stored, "--endpoint_name", "cars"]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"may still exist: endpoint configuration cars-{STAMP}, model cars-{STAMP}\.", error)
    assert error.rstrip("\n").split("\n")[-1].startswith("error: creating the endpoint: the account's quota")


@pytest.mark.slow
def test_a_failed_endpoint_is_removed_and_its_log_printed(aws: Aws, stored: str, capsys: pytest.CaptureFixture) -> None:
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


@pytest.mark.slow
def test_ctrl_c_while_waiting_warns_about_billing(
    aws: Aws, stored: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sagemaker_entry.hosting.deploy.follow_endpoint", interrupted)
    assert dispatch([*DEPLOY, stored, "--endpoint_name", "cars"]) == 130
    assert "and is billed. Delete it with: python -m sagemaker_entry delete cars" in capsys.readouterr().err
    assert names_in(aws)[0] == ["cars"]


@pytest.mark.slow
def test_autoscaling_is_set_when_the_endpoint_is_in_service(aws: Aws, stored: str) -> None:
    dispatch([*DEPLOY, stored, "--endpoint_name", "cars", "--max_instances", "3", "--target_invocations", "90"])
    client = aws.session.client("application-autoscaling")
    (target,) = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["ResourceId"], target["MinCapacity"], target["MaxCapacity"]) == (
        "endpoint/cars/variant/AllTraffic", 1, 3,
    )  # fmt: skip
    (policy,) = client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 90.0


@pytest.mark.slow
def test_no_credentials_and_no_region(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert "found no AWS region" in fails(capsys, stored)
    assert "found no AWS credentials" in fails(capsys, stored, "--region", REGION)
