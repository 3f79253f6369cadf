"""Wait for an endpoint or a batch transform and print its states and the end of its log."""

from __future__ import annotations

import sys
import time
from typing import Any

from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.resources import describe_endpoint

_BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack")
_LOG_LINES = 30
_REPORT_SECONDS = 60.0


def follow_endpoint(client: Any, name: str, poll: float = 10.0) -> dict[str, Any]:
    """Print the endpoint's states until it reaches a final one; return its description. Raises AwsError."""
    reported, reported_at, start = "", 0.0, time.monotonic()
    while True:
        description = describe_endpoint(client, name)
        if description is None:
            raise AwsError(f"the endpoint {name} has been deleted in the meantime.")
        status, now = description["EndpointStatus"], time.monotonic()
        if status != reported or now - reported_at >= _REPORT_SECONDS:
            print(f"[{status}] after {now - start:.0f} s", flush=True)
            reported, reported_at = status, now
        if status not in _BUSY:
            return description
        time.sleep(poll)


def follow_transform(client: Any, name: str, poll: float = 10.0) -> dict[str, Any]:
    """Print the batch transform's states until it ends; return its description. Raises AwsError."""
    reported, reported_at, start = "", 0.0, time.monotonic()
    while True:
        with aws_errors(f"describing the batch transform {name}"):
            description: dict[str, Any] = client.describe_transform_job(TransformJobName=name)
        status, now = description["TransformJobStatus"], time.monotonic()
        if status != reported or now - reported_at >= _REPORT_SECONDS:
            print(f"[{status}] after {now - start:.0f} s", flush=True)
            reported, reported_at = status, now
        if status not in ("InProgress", "Stopping"):
            return description
        time.sleep(poll)


def print_log_end(session: Any, name: str, group: str = "/aws/sagemaker/Endpoints/{name}", prefix: str = "") -> None:
    """Print the last lines of the container's log on standard error; if there are none, print its log group."""
    from botocore.exceptions import BotoCoreError, ClientError

    client, group = session.client("logs"), group.format(name=name)
    try:
        options = {"logStreamNamePrefix": prefix} if prefix else {}
        streams = client.describe_log_streams(logGroupName=group, **options)["logStreams"]
        lines: list[str] = []
        for stream in streams[-2:]:
            answer = client.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], limit=_LOG_LINES)
            lines += [event["message"].rstrip() for event in answer["events"]]
    except (ClientError, BotoCoreError):
        lines = []
    if not lines:
        print(f"The container's log, if it wrote one, is in CloudWatch: {group}.", file=sys.stderr)
        return
    print(f"The end of the container's log (CloudWatch, {group}):", file=sys.stderr)
    for line in lines[-_LOG_LINES:]:
        print(f"  {line}", file=sys.stderr)
