"""What these commands made in an account: found by the project's tag, never by name alone, and removed in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sagemaker_entry.aws.account_settings import LONGEST_BASE_NAME
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors

PROJECT_TAG = "pspnet"
"""Key of the tag on all that these commands create; its value is the endpoint's name, or the transform's."""
VARIANT = "AllTraffic"
"""Name of an endpoint's only variant, as the SageMaker SDK calls it."""

_GONE_SECONDS = 300.0
_SCALABLE = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
_UNKNOWN = ("could not find", "does not exist", "not found", "cannot find")


@dataclass
class Group:
    """An endpoint (or transform) and all that was made for it."""

    owner: str
    endpoint: str | None = None
    configs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What `delete` says that it will remove."""
        if self.endpoint is not None:
            yield f"endpoint {self.endpoint}"
        yield from (f"endpoint configuration {name}" for name in self.configs)
        yield from (f"model {name}" for name in self.models)

    def __bool__(self) -> bool:
        return any(True for _ in self.lines())


def is_unknown(error: Any) -> bool:
    """Whether a ClientError says that there is no such thing."""
    details = error.response.get("Error", {})
    message = str(details.get("Message", "")).lower()
    return details.get("Code") in ("ResourceNotFound", "ResourceNotFoundException") or any(
        text in message for text in _UNKNOWN
    )


def describe_endpoint(client: Any, name: str) -> dict[str, Any] | None:
    """SageMaker's description of an endpoint, None if there is none of this name; raises AwsError."""
    from botocore.exceptions import ClientError

    with aws_errors(f"asking about the endpoint {name}"):
        try:
            description: dict[str, Any] = client.describe_endpoint(EndpointName=name)
            return description
        except ClientError as error:
            if is_unknown(error):
                return None
            raise


def job_status(client: Any, name: str) -> dict[str, Any]:
    """SageMaker's description of a training job; raises AwsError."""
    with aws_errors(f"asking about the job {name}"):
        description: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
    return description


def owner_of(client: Any, arn: str) -> str | None:
    """The value of the project's tag; None where these commands did not make the resource."""
    tags = client.list_tags(ResourceArn=arn)["Tags"]
    return next((tag["Value"] for tag in tags if tag["Key"] == PROJECT_TAG), None)


def find_groups(client: Any, name: str | None = None) -> dict[str, Group]:
    """All that these commands made, by owner; for one owner only if `name` is given. Raises AwsError."""
    groups: dict[str, Group] = {}
    # Names of configurations and models begin with the owner's, which may have been cut to make room for the date.
    options = {} if name is None else {"NameContains": name[:LONGEST_BASE_NAME].rstrip("-")}

    def group_of(arn: str) -> Group | None:
        owner = owner_of(client, arn)
        if owner is None or (name is not None and owner != name):
            return None
        return groups.setdefault(owner, Group(owner))

    with aws_errors("looking for what was made"):
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
    """How Application Auto Scaling calls the endpoint's variant."""
    return {**_SCALABLE, "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}"}


def remove_scaling(session: Any, endpoint: str) -> bool:
    """Take the endpoint's variant from Application Auto Scaling, with its policies; whether it was there."""
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


def remove(session: Any, group: Group, say: Callable[[str], None] = print) -> None:
    """Delete a group: autoscaling, endpoint, configurations, models. What is gone already is passed over.

    Raises AwsError at the first thing that cannot be deleted; what comes after it is then still there.
    """
    client = session.client("sagemaker")
    if group.endpoint is not None:
        if remove_scaling(session, group.endpoint):
            say(f"Removed the autoscaling of {group.endpoint}")
        _delete(say, f"endpoint {group.endpoint}", client.delete_endpoint, EndpointName=group.endpoint)
        _wait_until_gone(client, group.endpoint)
    for name in group.configs:
        _delete(say, f"endpoint configuration {name}", client.delete_endpoint_config, EndpointConfigName=name)
    for name in group.models:
        _delete(say, f"model {name}", client.delete_model, ModelName=name)


def _delete(say: Callable[[str], None], what: str, call: Callable[..., Any], **parameters: str) -> None:
    from botocore.exceptions import ClientError

    with aws_errors(f"deleting the {what}"):
        try:
            call(**parameters)
        except ClientError as error:
            if not is_unknown(error):
                raise
            return
    say(f"Deleted the {what}")


def _wait_until_gone(client: Any, endpoint: str) -> None:
    """A configuration must not be deleted while its endpoint still runs."""
    deadline = time.monotonic() + _GONE_SECONDS
    pause = 0.5
    while describe_endpoint(client, endpoint) is not None:
        if time.monotonic() > deadline:
            raise AwsError(
                f"the endpoint {endpoint} is still being deleted; give the same command again later for the rest."
            )
        time.sleep(pause)
        pause = min(2 * pause, 10.0)
