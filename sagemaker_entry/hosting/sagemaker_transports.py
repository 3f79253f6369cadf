"""SageMaker transports: InvokeEndpoint for real-time endpoints, InvokeEndpointAsync with S3 for asynchronous ones."""

from __future__ import annotations

import time
import uuid
from typing import Any

from pspnet.client.transport import TIMEOUT, EndpointError, Reply, error_text
from pspnet.system.backoff import Backoff
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.resources import describe_endpoint
from sagemaker_entry.aws.s3_objects import parse_uri
from sagemaker_entry.hosting.hosting_requests import LARGEST_BYTES, LONG_SECONDS

INLINE_BYTES = 128_000
"""Largest inline body of InvokeEndpointAsync; a larger one is uploaded to S3 first."""

_FIRST_DELAY, _MAX_DELAY = 0.2, 5.0
_REFUSED_BY_STATUS = {"ModelNotReadyException": 429, "ServiceUnavailable": 503, "InternalFailure": 500}
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown")


class RuntimeTransport:
    """InvokeEndpoint of a real-time endpoint through boto3. Thread-safe."""

    def __init__(self, name: str, session: Any, largest: int | None, timeout: float = TIMEOUT, pool: int = 16) -> None:
        from botocore.config import Config

        self.name = name
        self.largest = largest
        # The caller retries; botocore's own retries would multiply with its.
        options = Config(read_timeout=timeout, max_pool_connections=pool, retries={"total_max_attempts": 1})
        with aws_errors(f"endpoint {name}"):
            self._client = session.client("sagemaker-runtime", config=options)

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        from botocore.exceptions import ClientError

        with aws_errors(f"endpoint {self.name}"):
            try:
                answer = self._client.invoke_endpoint(
                    EndpointName=self.name, Body=body, ContentType=content_type, Accept=accept
                )
                return Reply(answer["Body"].read(), answer.get("ContentType", ""))
            except ClientError as error:
                refusal = self._refusal(error.response)
                if refusal is None:
                    raise
                raise refusal from error

    def _refusal(self, response: dict[str, Any]) -> EndpointError | None:
        """Return the endpoint's or SageMaker's error; None for an error code that every AWS service may return."""
        details = response.get("Error", {})
        code, message = str(details.get("Code", "")), " ".join(str(details.get("Message", "")).split())
        if code == "ModelError":
            status = int(response.get("OriginalStatusCode") or 500)
            text = error_text(str(response.get("OriginalMessage") or message).encode())
            return EndpointError(f"endpoint {self.name} answered {status}: {text}", status)
        if code in _REFUSED_BY_STATUS or code in _THROTTLED:
            status = _REFUSED_BY_STATUS.get(code, 429)
            return EndpointError(f"endpoint {self.name} refused the request ({code}): {message}", status)
        if code in ("ValidationError", "ValidationException") and "not found" in message.lower():
            return EndpointError(
                f"endpoint {self.name}: not found in this account and region; `python -m sagemaker_entry status` "
                "lists the existing ones.",
                404,
            )
        if response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 413:
            return EndpointError(f"endpoint {self.name}: the request exceeds SageMaker's size limit: {message}", 413)
        return None

    def close(self) -> None:
        self._client.close()


def async_output_path(session: Any, name: str) -> str | None:
    """Return the S3 path of an asynchronous endpoint's answers; None for any other endpoint, or without permission.

    A caller may have the permission to invoke an endpoint but not to describe it.
    """
    client = session.client("sagemaker")
    try:
        found = describe_endpoint(client, name)
        if found is None:
            return None
        with aws_errors(f"endpoint {name}"):
            config = client.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    except AwsError:
        return None
    output: str | None = config.get("AsyncInferenceConfig", {}).get("OutputConfig", {}).get("S3OutputPath")
    return output


class AsyncTransport:
    """InvokeEndpointAsync of an asynchronous endpoint, with answers on S3. Thread-safe."""

    largest: int | None = LARGEST_BYTES

    def __init__(self, name: str, session: Any, answers: str, seconds: float = LONG_SECONDS) -> None:
        self.name = name
        self._seconds = seconds
        self._requests = f"{answers.rstrip('/')}/requests"
        with aws_errors(f"endpoint {name}"):
            self._runtime, self._s3 = session.client("sagemaker-runtime"), session.client("s3")

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        """Queue a request and wait for its answer. Raises EndpointError, AwsError."""
        options = {"EndpointName": self.name, "ContentType": content_type, "Accept": accept}
        with aws_errors(f"endpoint {self.name}"):
            if len(body) <= INLINE_BYTES:
                queued = self._runtime.invoke_endpoint_async(Body=body, **options)
                return Reply(self._wait(queued), accept)
            bucket, prefix = parse_uri(self._requests)
            key = f"{prefix}/{uuid.uuid4()}"
            self._s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)
            try:
                queued = self._runtime.invoke_endpoint_async(InputLocation=f"s3://{bucket}/{key}", **options)
                return Reply(self._wait(queued), accept)
            finally:
                self._s3.delete_object(Bucket=bucket, Key=key)

    def _wait(self, queued: dict[str, Any]) -> bytes:
        deadline, backoff = time.monotonic() + self._seconds, Backoff(_FIRST_DELAY, _MAX_DELAY)
        while time.monotonic() < deadline:
            answer = self._read(queued["OutputLocation"])
            if answer is not None:
                return answer
            failure = self._read(queued["FailureLocation"]) if queued.get("FailureLocation") else None
            if failure is not None:
                raise EndpointError(f"endpoint {self.name} failed: {error_text(failure)}", 400)
            time.sleep(backoff.next())
        raise EndpointError(
            f"endpoint {self.name}: no answer appeared in {queued['OutputLocation']} within {self._seconds:g} seconds."
        )

    def _read(self, uri: str) -> bytes | None:
        """Return the content of an object, None while it does not exist."""
        from botocore.exceptions import ClientError

        bucket, key = parse_uri(uri)
        try:
            content: bytes = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            return content
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise

    def close(self) -> None:
        self._runtime.close()
        self._s3.close()
