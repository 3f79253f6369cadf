"""Training job follower: print its states and log lines until it ends."""

from __future__ import annotations

import time
from typing import Any

from sagemaker_entry.aws.aws_errors import AwsError
from sagemaker_entry.aws.resources import job_status

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_ENDED = ("Completed", "Failed", "Stopped")


def follow_job(session: Any, name: str, poll: float = 10.0) -> int:
    """Print the job's states and log lines until it ends; return 0 if it completed, else 1."""
    client, log, reported = session.client("sagemaker"), JobLog(session, name), 0
    while True:
        description = _watched_status(client, name)
        transitions = description.get("SecondaryStatusTransitions", [])
        for state in transitions[reported:]:
            print(f"[{state['Status']}] {state.get('StatusMessage', '')}".rstrip(), flush=True)
        reported = len(transitions)
        ended = description["TrainingJobStatus"] in _ENDED
        log.print_new()
        if ended:
            time.sleep(poll)  # the last lines, with the scores, arrive in the log with a delay
            log.print_new()
            return _report_end(description)
        time.sleep(poll)


def _watched_status(client: Any, name: str) -> dict[str, Any]:
    """Return `job_status`; an AwsError notes that the job itself keeps running."""
    try:
        return job_status(client, name)
    except AwsError as error:
        raise AwsError(
            f"{error} The job itself keeps running: aws sagemaker describe-training-job --training-job-name {name}"
        ) from error


def _report_end(description: dict[str, Any]) -> int:
    name, status = description["TrainingJobName"], description["TrainingJobStatus"]
    seconds = description.get("BillableTimeInSeconds")
    billed = f" {seconds:,} billable seconds." if seconds is not None else ""
    if status == "Failed":
        reason = description.get("FailureReason") or "SageMaker gave no reason"
        raise AwsError(f"the job {name} failed.{billed} {reason}")
    artifact = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    print(f"{name}: {status}.{billed}{f' Model: {artifact}' if artifact else ''}")
    return 0 if status == "Completed" else 1


class JobLog:
    """The job's log streams, one per instance."""

    def __init__(self, session: Any, name: str) -> None:
        self._client = session.client("logs")
        self._name = name
        self._tokens: dict[str, str] = {}
        self._readable = True

    def print_new(self) -> None:
        """Print the lines since the last call. Without permission to read the log, print a notice once."""
        from botocore.exceptions import BotoCoreError, ClientError

        if not self._readable:
            return
        try:
            for stream in self._streams():
                self._print_stream(stream)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("ResourceNotFoundException", "ThrottlingException"):
                return  # the log group is created with the first job's first line
            self._readable = False
            print(f"Cannot read the log ({code}); it is in CloudWatch, {LOG_GROUP}, {self._name}.", flush=True)
        except BotoCoreError:
            return  # a transient network error; the status request reports a lasting one

    def _streams(self) -> list[str]:
        answer = self._client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._name}/")
        return sorted(stream["logStreamName"] for stream in answer["logStreams"])

    def _print_stream(self, stream: str) -> None:
        while True:
            token = self._tokens.get(stream)
            options = {"nextToken": token} if token else {}
            answer = self._client.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **options
            )
            for event in answer["events"]:
                print(event["message"], flush=True)
            self._tokens[stream] = answer["nextForwardToken"]
            if answer["nextForwardToken"] == token or not answer["events"]:
                return
