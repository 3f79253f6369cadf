"""`delete` and `status`: only resources with the project's tag, in the right order, after confirmation."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")

from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.aws.resources import find_groups
from sagemaker_entry.commands import dispatch
from tests.sagemaker_entry.conftest import ROLE, Aws

SERVERLESS = {"ServerlessConfig": {"MemorySizeInMB": 4096, "MaxConcurrency": 5}}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def make(aws: Aws, name: str, owner: str | None, **variant: Any) -> None:
    """Create model, configuration and endpoint of one name, with the project's tag unless the owner is None."""
    client, tags = aws.session.client("sagemaker"), [] if owner is None else [{"Key": "pspnet", "Value": owner}]
    client.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"}, Tags=tags)
    variant = variant or {"InitialInstanceCount": 2, "InstanceType": "ml.t2.xlarge"}
    variants = [{"VariantName": "AllTraffic", "ModelName": name, **variant}]
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, Tags=tags)
    client.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
    aws.requests.clear()


def left(aws: Aws) -> set[str]:
    client = aws.session.client("sagemaker")
    return (
        {f"endpoint {one['EndpointName']}" for one in client.list_endpoints()["Endpoints"]}
        | {f"config {one['EndpointConfigName']}" for one in client.list_endpoint_configs()["EndpointConfigs"]}
        | {f"model {one['ModelName']}" for one in client.list_models()["Models"]}
    )


def everything(name: str) -> set[str]:
    return {f"endpoint {name}", f"config {name}", f"model {name}"}


@pytest.mark.slow
def test_delete_removes_an_endpoint_and_its_resources(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    make(aws, "cars", "cars")
    make(aws, "cars-2", "cars-2")
    client = aws.session.client("sagemaker")
    old = [{"Key": "pspnet", "Value": "cars"}]
    client.create_model(ModelName="cars-old", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"}, Tags=old)
    scaling = aws.session.client("application-autoscaling")
    scaling.register_scalable_target(
        ServiceNamespace="sagemaker", ResourceId="endpoint/cars/variant/AllTraffic", MinCapacity=1, MaxCapacity=2,
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
    )  # fmt: skip
    aws.requests.clear()
    assert dispatch(["delete", "cars", "--yes"]) == 0
    assert left(aws) == everything("cars-2")
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []
    order = [name for name, _ in aws.requests if name.startswith(("Delete", "Deregister"))]
    assert order == ["DeregisterScalableTarget", "DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel", "DeleteModel"]
    out = capsys.readouterr().out
    assert "To be deleted in ap-northeast-1:\n  endpoint cars\n  endpoint configuration cars\n  model cars\n" in out
    assert "Removed the autoscaling of cars\nDeleted the endpoint cars\n" in out


@pytest.mark.slow
def test_delete_all_removes_only_resources_of_the_project(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    make(aws, "one", "one")
    make(aws, "two", "two", **SERVERLESS)
    make(aws, "theirs", None)
    assert dispatch(["delete", "--all", "--yes"]) == 0
    assert left(aws) == everything("theirs")
    out = capsys.readouterr().out
    assert "  endpoint one\n" in out
    assert "theirs" not in out
    assert dispatch(["delete", "--all", "--yes"]) == 0
    assert "Found no resources of this project in ap-northeast-1." in capsys.readouterr().out


@pytest.mark.slow
def test_delete_asks_and_accepts_only_yes(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make(aws, "cars", "cars")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    assert dispatch(["delete", "cars"]) == 1
    assert "Nothing was deleted." in capsys.readouterr().out
    assert left(aws) == everything("cars")
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    assert dispatch(["delete", "cars"]) == 0
    assert left(aws) == set()


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert run_guarded(dispatch, [*argv]) in (1, 2)
    return capsys.readouterr().err.rstrip("\n").split("\n")[-1]


@pytest.mark.slow
def test_refused_deletions(aws: Aws, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    make(aws, "theirs", None)
    make(aws, "cars", "cars")
    assert "no such endpoint none" in fails(capsys, "delete", "none", "--yes")
    assert "the endpoint theirs was not created by this project" in fails(capsys, "delete", "theirs", "--yes")
    assert "give either the name of an endpoint, or --all" in fails(capsys, "delete")
    assert "give either the name of an endpoint, or --all" in fails(capsys, "delete", "cars", "--all")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert "no terminal to ask for confirmation; give --yes" in fails(capsys, "delete", "cars")
    assert left(aws) == everything("theirs") | everything("cars")


def test_leftovers_of_a_deleted_endpoint_are_removed(aws: Aws) -> None:
    make(aws, "cars", "cars")
    aws.session.client("sagemaker").delete_endpoint(EndpointName="cars")
    assert dispatch(["delete", "cars", "--yes"]) == 0
    assert left(aws) == set()


@pytest.mark.slow
def test_a_failed_deletion_does_not_block_the_others(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    make(aws, "one", "one")
    aws.refuse("DeleteModel", "AccessDeniedException", "not authorized to perform: sagemaker:DeleteModel")
    assert dispatch(["delete", "--all", "--yes"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: deleting the model one: access denied (not authorized")
    assert left(aws) == {"model one"}


@pytest.mark.slow
def test_delete_works_without_permission_for_autoscaling(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    make(aws, "cars", "cars")
    aws.refuse("DescribeScalableTargets", "AccessDeniedException", "access denied: not authorized")
    assert dispatch(["delete", "cars", "--yes"]) == 0
    assert "warning: autoscaling of cars: access denied" in capsys.readouterr().err
    assert left(aws) == set()


def test_groups_of_long_names(aws: Aws) -> None:
    long = "a" * 60
    make(aws, long, long)
    tag = [{"Key": "pspnet", "Value": long}]
    name = "a" * 48 + "-20260101000000"
    aws.session.client("sagemaker").create_model(
        ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"}, Tags=tag
    )
    (group,) = find_groups(aws.session.client("sagemaker"), long).values()
    assert (group.endpoint, group.configs, sorted(group.models)) == (long, [long], sorted([long, name]))


def test_status_shows_state_machine_and_billing(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    make(aws, "cars", "cars")
    make(aws, "small", "small", **SERVERLESS)
    make(aws, "theirs", None)
    found = aws.session.client("sagemaker").describe_endpoint(EndpointName="cars")
    start = datetime.now(timezone.utc) - timedelta(hours=26)
    aws.answers["DescribeEndpoint"] = lambda sent: {
        **found,
        "CreationTime": start,
        "EndpointName": sent["EndpointName"],
        "EndpointConfigName": sent["EndpointName"],
    }
    assert dispatch(["status"]) == 0
    out = capsys.readouterr().out
    since = start.strftime("%Y-%m-%d %H:%M UTC")
    assert f"endpoint cars: InService, since {since}, ml.t2.xlarge x 2\n" in out
    assert "  billed by the hour until deleted: 26.0 hours of ml.t2.xlarge x 2 so far; python -m" in out
    assert (
        f"endpoint small: InService, since {since}, serverless with 4096 MB, 5 concurrent requests\n  billed by request"
        in out
    )
    assert "theirs" not in out


@pytest.mark.slow
def test_status_of_jobs_and_without_resources(aws: Aws, capsys: pytest.CaptureFixture) -> None:
    assert dispatch(["status"]) == 0
    assert capsys.readouterr().out == "Found no resources of this project in ap-northeast-1.\n"
    client = aws.session.client("sagemaker")
    s3 = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/i/"}}
    for name in ("xporter-segmentation-1", "other-xporter-segmentation"):
        client.create_transform_job(
            TransformJobName=name, ModelName="m", TransformInput={"DataSource": s3},
            TransformOutput={"S3OutputPath": "s3://b/o"},
            TransformResources={"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
        )  # fmt: skip
    client.create_training_job(
        TrainingJobName="xporter-segmentation-2", RoleArn=ROLE, OutputDataConfig={"S3OutputPath": "s3://b/o"},
        AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File"},
        ResourceConfig={"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 5},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )  # fmt: skip
    assert dispatch(["status"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("batch transform xporter-segmentation-1: Completed, since ")
    assert lines[1].startswith("training job xporter-segmentation-2: Completed, since ")
    assert ", ml.g4dn.xlarge x 1" in lines[1]
    assert lines[2].startswith("  model s3://")
    assert dispatch(["status", "xporter-segmentation-2"]) == 0
    assert capsys.readouterr().out.startswith("training job xporter-segmentation-2")
    assert "no endpoint, batch transform or training job of this name" in fails(capsys, "status", "none")


@pytest.mark.slow
def test_no_region_and_no_credentials(capsys: pytest.CaptureFixture) -> None:
    for command in (["status"], ["delete", "--all", "--yes"]):
        assert "found no AWS region" in fails(capsys, *command)
        assert "found no AWS credentials" in fails(capsys, *command, "--region", "eu-west-1")
