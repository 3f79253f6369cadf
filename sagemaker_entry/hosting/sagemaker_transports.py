"""SageMaker transports: InvokeEndpoint for real-time endpoints, InvokeEndpointAsync with S3 for asynchronous ones."""

from __future__ import annotations

import time
import uuid
from typing import Any

from pspnet.client.transport import TIMEOUT, EndpointError, Reply, sentence_of
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.resources import describe_endpoint
from sagemaker_entry.aws.s3_objects import parse_uri
from sagemaker_entry.hosting.hosting_requests import LARGEST_BYTES, LONG_SECONDS

INLINE_BYTES = 128_000
"""Largest body that InvokeEndpointAsync takes itself; a larger one goes to S3 first."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_REFUSED_BY_STATUS = {"ModelNotReadyException": 429, "ServiceUnavailable": 503, "InternalFailure": 500}
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown")


class RuntimeTransport:
    """A SageMaker endpoint by its name, through boto3."""

    def __init__(self, name: str, session: Any, largest: int | None, timeout: float = TIMEOUT, pool: int = 16) -> None:
        from botocore.config import Config

        self.name = name
        self.largest = largest
        # Tries are counted by the caller: botocore's own would multiply with them.
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
        """The endpoint's own sentence, or SageMaker's; None for what every AWS service may answer."""
        details = response.get("Error", {})
        code, message = str(details.get("Code", "")), " ".join(str(details.get("Message", "")).split())
        if code == "ModelError":
            status = int(response.get("OriginalStatusCode") or 500)
            said = sentence_of(str(response.get("OriginalMessage") or message).encode())
            return EndpointError(f"endpoint {self.name} answered {status}: {said}", status)
        if code in _REFUSED_BY_STATUS or code in _THROTTLED:
            status = _REFUSED_BY_STATUS.get(code, 429)
            return EndpointError(f"endpoint {self.name} could not take the request ({code}): {message}", status)
        if code in ("ValidationError", "ValidationException") and "not found" in message.lower():
            return EndpointError(
                f"endpoint {self.name}: there is none of this name in this account and region; "
                "`python -m sagemaker_entry status` lists those there are.",
                404,
            )
        if response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 413:
            return EndpointError(f"endpoint {self.name}: SageMaker refused the size of the request: {message}", 413)
        return None

    def close(self) -> None:
        self._client.close()


def answers_of(session: Any, name: str) -> str | None:
    """Where an asynchronous endpoint writes its answers; None for another kind of endpoint, or where asking is denied.

    A caller who may only invoke an endpoint is not expected to describe it.
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
    """An asynchronous SageMaker endpoint by its name. Usable from several threads."""

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
        deadline, pause = time.monotonic() + self._seconds, _FIRST_PAUSE
        while time.monotonic() < deadline:
            answer = self._read(queued["OutputLocation"])
            if answer is not None:
                return answer
            failure = self._read(queued["FailureLocation"]) if queued.get("FailureLocation") else None
            if failure is not None:
                raise EndpointError(f"endpoint {self.name} could not answer: {sentence_of(failure)}", 400)
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        raise EndpointError(
            f"endpoint {self.name}: no answer appeared in {queued['OutputLocation']} within {self._seconds:g} seconds."
        )

    def _read(self, uri: str) -> bytes | None:
        """The content of an object; None while it is not there."""
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
