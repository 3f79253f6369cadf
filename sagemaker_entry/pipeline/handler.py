"""AWS Lambda function that summarises mask files on S3: one line of JSON per frame.

    S3 event, alone or in SQS messages -> mask file -> class fractions, corridor, obstacle -> summaries/<key>.jsonl
                                                                                         -> a message, if configured

Idempotent: the same file gives the same bytes under the same key, so events may be repeated or late. It is packed with
`python -m sagemaker_entry lambda_package` and needs NumPy, Pillow and the boto3 of the Lambda runtime.
docs/driving.md describes its settings and the summary lines.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

from pspnet.driving.mask_summary import json_line, summarise
from pspnet.errors import PspnetError
from sagemaker_entry.pipeline.lambda_masks import is_mask_file, read_frames
from sagemaker_entry.pipeline.lambda_settings import LambdaSettings

# Time reserved for the next message: seconds for a cold connection, and 1.5 times the longest message so far.
_LEAST_SECONDS, _MARGIN = 5.0, 1.5
_MISSING = ("NoSuchKey", "404", "NotFound")


class FileError(PspnetError):
    """A mask file that cannot be summarised."""


def handler(event: dict[str, Any], context: Any = None) -> dict[str, Any]:
    """Lambda entry point. `event` is an S3 event, or SQS messages with S3 events; `context` has the remaining time.

    Returns {"batchItemFailures": [{"itemIdentifier": ...}]} for SQS: only these messages are retried, including those
    for which no time was left. For a plain S3 event every file is tried; if any failed, RuntimeError is raised at the
    end, and Lambda retries the whole event.
    """
    settings = _settings()
    messages = [record for record in event.get("Records", []) if record.get("eventSource") == "aws:sqs"]
    if messages:
        failed = _process_messages(messages, settings, context)
        return {"batchItemFailures": [{"itemIdentifier": message["messageId"]} for message in failed]}
    problems = _try_all(event, settings)
    if problems:
        raise RuntimeError("; ".join(problems))
    return {"batchItemFailures": []}


def _process_messages(messages: list[dict[str, Any]], settings: LambdaSettings, context: Any) -> list[dict[str, Any]]:
    """Process messages in order; return those that failed and those for which no time is left.

    If the function hit its time limit, the queue would retry all of them.
    """
    failed: list[dict[str, Any]] = []
    longest = 0.0
    for number, message in enumerate(messages):
        started = time.monotonic()
        if number and _seconds_left(context) < max(_LEAST_SECONDS, _MARGIN * longest):
            print(f"{len(messages) - number} of {len(messages)} messages left for a retry: not enough time.")
            return failed + messages[number:]
        if not _process_message(message, settings):
            failed.append(message)
        longest = max(longest, time.monotonic() - started)
    return failed


def _seconds_left(context: Any) -> float:
    return math.inf if context is None else float(context.get_remaining_time_in_millis()) / 1000


def _process_message(message: dict[str, Any], settings: LambdaSettings) -> bool:
    try:
        event = json.loads(message["body"])
        if not isinstance(event, dict):
            raise ValueError("not an object")
    except ValueError as error:
        print(f"message {message['messageId']}: not an S3 event ({error}).")
        return False
    return not _try_all(event, settings)


def _try_all(event: dict[str, Any], settings: LambdaSettings) -> list[str]:
    """Summarise every file of an S3 event; return the errors."""
    problems: list[str] = []
    records = event.get("Records", [])
    if not isinstance(records, list):
        problems.append(f"the event's Records are {type(records).__name__}, not a list.")
        print(problems[-1])
        return problems
    for number, record in enumerate(records):
        where = f"record {number} of the event"
        try:
            created = created_file(record)
            if created is not None:
                bucket, key, size = created
                where = f"s3://{bucket}/{key}"
                _summarise_file(bucket, key, size, settings)
        except Exception as error:
            # A broken file or record must not block the others; it is reported and retried.
            reason = str(error) if isinstance(error, PspnetError) else f"{type(error).__name__}: {error}"
            problems.append(f"{where}: {reason}")
            print(problems[-1])
    return problems


def created_file(record: dict[str, Any]) -> tuple[str, str, int] | None:
    """Return (bucket, key, size) of the created object in a record of an S3 event; None for another kind of record.

    Raises FileError for a malformed record.
    """
    try:
        if record.get("eventSource") != "aws:s3" or not str(record.get("eventName", "")).startswith("ObjectCreated:"):
            return None
        stored = record["s3"]["object"]
        return str(record["s3"]["bucket"]["name"]), unquote_plus(stored["key"]), int(stored.get("size", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"not an S3 record ({type(error).__name__}: {error}).") from error


def output_key(key: str, settings: LambdaSettings) -> str:
    """Return the key of a mask file's summary."""
    return f"{settings.output_prefix}{key}.jsonl"


def _summarise_file(bucket: str, key: str, size: int, settings: LambdaSettings) -> None:
    if key.startswith(settings.output_prefix) or not is_mask_file(key):
        print(f"s3://{bucket}/{key}: not a mask file; skipped.")
        return
    if size > settings.largest_bytes:
        raise FileError(
            f"has {size} bytes, more than {settings.largest_bytes}; write shorter segments, or raise "
            "PSPNET_LARGEST_BYTES together with the function's memory."
        )
    content = _read(bucket, key, settings)
    if content is None:
        print(f"s3://{bucket}/{key}: no longer exists; skipped.")
        return
    lines = list(_lines(content, key, settings))
    body = "".join(lines).encode()
    summary = output_key(key, settings)
    _client("s3").put_object(Bucket=bucket, Key=summary, Body=body, ContentType="application/x-ndjson")
    print(f"s3://{bucket}/{summary}: {len(lines)} frames")
    if settings.forward_to is not None and lines:
        _forward(bucket, key, summary, body, lines, settings)


def _read(bucket: str, key: str, settings: LambdaSettings) -> bytes | None:
    """Return the file's current content, None if it was deleted.

    Not the event's version: with late events, an older summary would replace a newer one.
    """
    from botocore.exceptions import ClientError

    try:
        answer = _client("s3").get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _MISSING:
            return None
        raise
    content: bytes = answer["Body"].read(settings.largest_bytes + 1)
    if len(content) > settings.largest_bytes:
        raise FileError(f"has more than {settings.largest_bytes} bytes now.")
    return content


def _lines(content: bytes, key: str, settings: LambdaSettings) -> Iterator[str]:
    for frame in read_frames(content, key, settings.classes):
        view = settings.view(frame.class_names)
        yield json_line({"key": key, **frame.about, **summarise(frame.mask, frame.class_names, view)})


def _forward(bucket: str, key: str, summary: str, body: bytes, lines: list[str], settings: LambdaSettings) -> None:
    """Send one message for a file: the key of its summary, and its last line. The id is a hash of the summary."""
    target = settings.target
    assert target is not None
    identity = hashlib.sha256(f"{bucket}/{key}\n".encode() + body).hexdigest()
    message = json_line(
        {
            "id": identity,
            "bucket": bucket,
            "key": key,
            "summary": summary,
            "frames": len(lines),
            "last": json.loads(lines[-1]),
        }
    )
    fifo = {}
    if target.name.endswith(".fifo"):
        # Keep the order of the files of a folder; SQS and SNS drop a repeated id within five minutes.
        fifo = {"MessageGroupId": _group(key), "MessageDeduplicationId": identity}
    if target.service == "sns":
        _client("sns", target.region).publish(TopicArn=target.arn, Message=message, **fifo)
        return
    owner = target.account
    queue = _client("sqs", target.region).get_queue_url(QueueName=target.name, QueueOwnerAWSAccountId=owner)["QueueUrl"]
    _client("sqs", target.region).send_message(QueueUrl=queue, MessageBody=message, **fifo)


def _group(key: str) -> str:
    return re.sub(r"[^\w-]", "_", key.rpartition("/")[0], flags=re.ASCII)[-128:] or "masks"


@functools.cache
def _settings() -> LambdaSettings:
    return LambdaSettings.from_environment(os.environ)


@functools.cache
def _client(service: str, region: str | None = None) -> Any:
    """Return the client of a service; the default is the function's own region."""
    import boto3

    return boto3.client(service, region_name=region)


if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    # During its start a function has a full CPU whatever its memory, so create the client of every event here.
    _client("s3")
