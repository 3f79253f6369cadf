"""Resources that these commands created in an account: find them by the project's tag, describe and delete them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pspnet.system.backoff import Backoff
from sagemaker_entry.aws.account_settings import LONGEST_BASE_NAME
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors

PROJECT_TAG = "pspnet"
"""Key of the tag on every created resource; its value is the name of the endpoint or the batch transform."""
VARIANT = "AllTraffic"
"""Name of an endpoint's only variant, the SageMaker SDK's default."""

_GONE_SECONDS = 300.0
_SCALABLE = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
_UNKNOWN = ("could not find", "does not exist", "not found", "cannot find")


@dataclass
class Group:
    """An endpoint (or transform) with its configurations and models."""

    owner: str
    endpoint: str | None = None
    configs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield a line for each resource, for `delete`."""
        if self.endpoint is not None:
            yield f"endpoint {self.endpoint}"
        yield from (f"endpoint configuration {name}" for name in self.configs)
        yield from (f"model {name}" for name in self.models)

    def __bool__(self) -> bool:
        return any(True for _ in self.lines())


def is_unknown(error: Any) -> bool:
    """Return True for a ClientError about a missing resource."""
    details = error.response.get("Error", {})
    message = str(details.get("Message", "")).lower()
    return details.get("Code") in ("ResourceNotFound", "ResourceNotFoundException") or any(
        text in message for text in _UNKNOWN
    )


def describe_endpoint(client: Any, name: str) -> dict[str, Any] | None:
    """Return SageMaker's description of an endpoint, None if it does not exist. Raises AwsError."""
    from botocore.exceptions import ClientError

    with aws_errors(f"describing the endpoint {name}"):
        try:
            description: dict[str, Any] = client.describe_endpoint(EndpointName=name)
            return description
        except ClientError as error:
            if is_unknown(error):
                return None
            raise


def job_status(client: Any, name: str) -> dict[str, Any]:
    """Return SageMaker's description of a training job. Raises AwsError."""
    with aws_errors(f"describing the job {name}"):
        description: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
    return description


def owner_of(client: Any, arn: str) -> str | None:
    """Return the value of the project's tag; None if these commands did not create the resource."""
    tags = client.list_tags(ResourceArn=arn)["Tags"]
    return next((tag["Value"] for tag in tags if tag["Key"] == PROJECT_TAG), None)


def find_groups(client: Any, name: str | None = None) -> dict[str, Group]:
    """Return every created resource by owner, or only those of the owner `name`. Raises AwsError."""
    groups: dict[str, Group] = {}
    # Names of configurations and models begin with the owner's, possibly truncated to leave room for the date.
    options = {} if name is None else {"NameContains": name[:LONGEST_BASE_NAME].rstrip("-")}

    def group_of(arn: str) -> Group | None:
        owner = owner_of(client, arn)
        if owner is None or (name is not None and owner != name):
            return None
        return groups.setdefault(owner, Group(owner))

    with aws_errors("listing resources"):
        for item in _pages(client, "list_endpoints", "Endpoints", options):
            group = group_of(item["EndpointArn"])
            if group is not None:
                group.endpoint = item["EndpointName"]
        for item in _pages(client, "list_endpoint_configs", "EndpointConfigs", options):
            group = group_of(item["EndpointConfigArn"])
            if group is not None:
                group.configs.append(item["EndpointConfigName"])
        for item in _pages(client, "list_models", "Models", options):
            group = group_of(item["ModelArn"])
            if group is not None:
                group.models.append(item["ModelName"])
    return groups


def _pages(client: Any, operation: str, key: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator(operation).paginate(**options):
        yield from page[key]


def scalable_target(endpoint: str) -> dict[str, str]:
    """Return Application Auto Scaling's identifier of the endpoint's variant."""
    return {**_SCALABLE, "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}"}


def remove_scaling(session: Any, endpoint: str) -> bool:
    """Deregister the endpoint's variant and its policies from Application Auto Scaling; return True if registered."""
    from botocore.exceptions import ClientError

    client, target = session.client("application-autoscaling"), scalable_target(endpoint)
    try:
        with aws_errors(f"autoscaling of {endpoint}"):
            found = client.describe_scalable_targets(
                ServiceNamespace=target["ServiceNamespace"], ResourceIds=[target["ResourceId"]]
            )
            if found["ScalableTargets"]:
                client.deregister_scalable_target(**target)
                return True
    except AwsError as error:
        cause = error.__cause__
        if not isinstance(cause, ClientError) or "denied" not in str(cause).lower():
            raise
        print(f"warning: {error}", file=sys.stderr)
    return False


def remove(session: Any, group: Group, report: Callable[[str], None] = print) -> None:
    """Delete a group in this order: autoscaling, endpoint, configurations, models. Missing resources are skipped.

    Raises AwsError for the first resource that cannot be deleted; later ones are kept.
    """
    client = session.client("sagemaker")
    if group.endpoint is not None:
        if remove_scaling(session, group.endpoint):
            report(f"Removed the autoscaling of {group.endpoint}")
        _delete(report, f"endpoint {group.endpoint}", client.delete_endpoint, EndpointName=group.endpoint)
        _wait_until_gone(client, group.endpoint)
    for name in group.configs:
        _delete(report, f"endpoint configuration {name}", client.delete_endpoint_config, EndpointConfigName=name)
    for name in group.models:
        _delete(report, f"model {name}", client.delete_model, ModelName=name)


def _delete(report: Callable[[str], None], what: str, call: Callable[..., Any], **parameters: str) -> None:
    from botocore.exceptions import ClientError

    with aws_errors(f"deleting the {what}"):
        try:
            call(**parameters)
        except ClientError as error:
            if not is_unknown(error):
                raise
            return
    report(f"Deleted the {what}")


def _wait_until_gone(client: Any, endpoint: str) -> None:
    """Wait until the endpoint is deleted: its configuration must not be deleted before it."""
    deadline = time.monotonic() + _GONE_SECONDS
    backoff = Backoff(0.5, 10.0)
    while describe_endpoint(client, endpoint) is not None:
        if time.monotonic() > deadline:
            raise AwsError(
                f"the endpoint {endpoint} is still being deleted; run the same command again later for the rest."
            )
        time.sleep(backoff.next())
