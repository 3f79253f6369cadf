"""`status`: list endpoints, batch transforms and training jobs with state, start, instance type and billing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pspnet.config.command_line import parse_settings
from pspnet.config.settings import setting
from sagemaker_entry.aws.account_settings import DEFAULT_PREFIX, SessionSettings
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.resources import describe_endpoint, is_unknown, job_status, owner_of
from sagemaker_entry.aws.session import boto_session

NEWEST_JOBS = 10
"""Jobs of each kind that `status` shows."""


@dataclass(frozen=True, init=False)
class StatusSettings(SessionSettings):
    """Settings of `status`."""

    name: str | None = setting(None, "one endpoint, batch transform or training job", positional=True, metavar="NAME")
    base_name: str = setting(DEFAULT_PREFIX, f"list the newest {NEWEST_JOBS} jobs whose name begins with it")


def status_command(argv: Sequence[str], command: str) -> int:
    """Print the lines of one resource, or of all."""
    settings = parse_settings(StatusSettings, argv, command, "Show endpoints and jobs, and what is billed.")
    require_packages("boto3")
    session = boto_session(settings)
    client, now = session.client("sagemaker"), datetime.now(timezone.utc)
    if settings.name is not None:
        for line in describe_one(client, settings.name, now):
            print(line)
        return 0
    lines = list(_list(client, settings.base_name, now))
    print("\n".join(lines) if lines else f"Found no resources of this project in {session.region_name}.")
    return 0


def _list(client: Any, base_name: str, now: datetime) -> Iterator[str]:
    with aws_errors("listing endpoints"):
        for page in client.get_paginator("list_endpoints").paginate():
            for item in page["Endpoints"]:
                if owner_of(client, item["EndpointArn"]) is not None:
                    yield from endpoint_lines(client, item["EndpointName"], now)
    newest = {"NameContains": base_name, "SortBy": "CreationTime", "SortOrder": "Descending", "MaxResults": NEWEST_JOBS}
    with aws_errors("listing batch transforms"):
        for item in client.list_transform_jobs(**newest)["TransformJobSummaries"]:
            if item["TransformJobName"].startswith(base_name):
                yield from transform_lines(client, item["TransformJobName"], now)
    with aws_errors("listing training jobs"):
        for item in client.list_training_jobs(**newest)["TrainingJobSummaries"]:
            if item["TrainingJobName"].startswith(base_name):
                yield from training_lines(client, item["TrainingJobName"], now)


def describe_one(client: Any, name: str, now: datetime) -> list[str]:
    """Return the lines of the resource with this name. Raises AwsError if there is none."""
    if describe_endpoint(client, name) is not None:
        return list(endpoint_lines(client, name, now))
    for lines in (transform_lines, training_lines):
        try:
            return list(lines(client, name, now))
        except AwsError as error:
            if error.__cause__ is None or not is_unknown(error.__cause__):
                raise
    raise AwsError(f"{name}: no endpoint, batch transform or training job of this name in this account and region.")


def endpoint_lines(client: Any, name: str, now: datetime) -> Iterator[str]:
    """Yield state, start, instance type and billing of an endpoint."""
    found = describe_endpoint(client, name)
    if found is None:
        return
    with aws_errors(f"describing the endpoint {name}"):
        config = client.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    variant = config["ProductionVariants"][0]
    status = found["EndpointStatus"]
    if status == "Failed" and found.get("FailureReason"):
        status = f"Failed: {found['FailureReason']}"
    head = f"endpoint {name}: {status}, since {_time(found['CreationTime'])}"
    if "ServerlessConfig" in variant:
        limits = variant["ServerlessConfig"]
        yield f"{head}, serverless with {limits['MemorySizeInMB']} MB, {limits['MaxConcurrency']} concurrent requests"
        yield "  billed by request"
        return
    running = (found.get("ProductionVariants") or [{}])[0].get("CurrentInstanceCount")
    count = variant.get("InitialInstanceCount", 1) if running is None else running
    kind = ", asynchronous" if config.get("AsyncInferenceConfig") else ""
    yield f"{head}, {variant['InstanceType']} x {count}{kind}"
    hours = (now - found["CreationTime"]).total_seconds() / 3600
    yield (
        f"  billed by the hour until deleted: {hours:,.1f} hours of {variant['InstanceType']} x {count} so far; "
        f"python -m sagemaker_entry delete {name}"
    )


def transform_lines(client: Any, name: str, now: datetime) -> Iterator[str]:
    """Yield state, start and instance type of a batch transform."""
    with aws_errors(f"describing the batch transform {name}"):
        found = client.describe_transform_job(TransformJobName=name)
    machines = found["TransformResources"]
    yield (
        f"batch transform {name}: {found['TransformJobStatus']}, since {_time(found['CreationTime'])}, "
        f"{machines['InstanceType']} x {machines['InstanceCount']}{_took(found, 'Transform', now)}"
    )
    if found["TransformJobStatus"] == "Failed":
        yield f"  {found.get('FailureReason') or 'SageMaker gave no reason'}"


def training_lines(client: Any, name: str, now: datetime) -> Iterator[str]:
    """Yield state, start, instance type and model of a training job."""
    found = job_status(client, name)
    machines = found["ResourceConfig"]
    billed = found.get("BillableTimeInSeconds")
    yield (
        f"training job {name}: {found['TrainingJobStatus']}, since {_time(found['CreationTime'])}, "
        f"{machines['InstanceType']} x {machines['InstanceCount']}{_took(found, 'Training', now)}"
        f"{'' if billed is None else f', {billed:,} billable seconds'}"
    )
    artifact = found.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if found["TrainingJobStatus"] == "Failed":
        yield f"  {found.get('FailureReason') or 'SageMaker gave no reason'}"
    elif artifact and found["TrainingJobStatus"] != "InProgress":
        yield f"  model {artifact}"


def _took(found: dict[str, Any], kind: str, now: datetime) -> str:
    start, end = found.get(f"{kind}StartTime"), found.get(f"{kind}EndTime") or now
    return "" if start is None else f", {(end - start).total_seconds() / 60:,.0f} minutes"


def _time(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
