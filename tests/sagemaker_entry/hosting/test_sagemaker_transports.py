"""Transport of asynchronous endpoints: requests inline or through S3, answers and failures on S3."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")

from PIL import Image

from pspnet.client.transport import EndpointError
from sagemaker_entry import EndpointPredictor
from sagemaker_entry.commands import dispatch
from tests.sagemaker_entry.conftest import REGION, ROLE, Aws

MASK = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
BUCKET = "answers-bucket"


class Queue:
    """Fake InvokeEndpointAsync: the answer or a failure appears after `looks` polls."""

    def __init__(self, aws: Aws, looks: int = 2, failure: bytes | None = None) -> None:
        self.s3, self.looks, self.failure = aws.session.client("s3"), looks, failure
        self.requests: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        aws.answers["InvokeEndpointAsync"] = self.invoke

    def invoke(self, parameters: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(parameters)
        location = parameters.get("InputLocation")
        if location is None:
            self.bodies.append(parameters["Body"])
        else:
            bucket, _, key = location[len("s3://") :].partition("/")
            self.bodies.append(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        number = len(self.requests)
        return {
            "OutputLocation": f"s3://{BUCKET}/out/{number}.out",
            "FailureLocation": f"s3://{BUCKET}/out/failed/{number}.out",
        }

    def sleep(self, seconds: float) -> None:
        self.looks -= 1
        if self.looks > 0:
            return
        buffer = io.BytesIO()
        Image.fromarray(MASK).save(buffer, format="PNG")
        number = len(self.requests)
        key = f"out/{number}.out" if self.failure is None else f"out/failed/{number}.out"
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=self.failure or buffer.getvalue())


@pytest.fixture
def endpoint(aws: Aws) -> Aws:
    client = aws.session.client("sagemaker")
    aws.session.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})
    variant = {"VariantName": "v", "ModelName": "m", "InitialInstanceCount": 1, "InstanceType": "ml.t2.xlarge"}
    output = {"OutputConfig": {"S3OutputPath": f"s3://{BUCKET}/out"}}
    client.create_endpoint_config(EndpointConfigName="slow", ProductionVariants=[variant], AsyncInferenceConfig=output)
    client.create_endpoint(EndpointName="slow", EndpointConfigName="slow")
    aws.requests.clear()
    return aws


def test_small_images_are_sent_inline_and_large_ones_through_s3(endpoint: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(endpoint)
    monkeypatch.setattr("sagemaker_entry.hosting.sagemaker_transports.time.sleep", queue.sleep)
    large = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    with EndpointPredictor("slow", asynchronous=True) as predictor:
        np.testing.assert_array_equal(predictor(large[:32, :32]), MASK)
        np.testing.assert_array_equal(predictor(large), MASK)
    assert "Body" in queue.requests[0]
    assert queue.requests[1]["InputLocation"].startswith(f"s3://{BUCKET}/out/requests/")
    assert (queue.requests[1]["ContentType"], queue.requests[1]["Accept"]) == ("image/png", "image/png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(queue.bodies[1]))), large)
    left = queue.s3.list_objects_v2(Bucket=BUCKET, Prefix="out/requests/")
    assert left["KeyCount"] == 0


def test_predict_detects_an_asynchronous_endpoint(
    endpoint: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(endpoint, looks=1)
    monkeypatch.setattr("sagemaker_entry.hosting.sagemaker_transports.time.sleep", queue.sleep)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    assert dispatch(["predict", "slow", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "a.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), MASK)


@pytest.mark.slow
def test_failures_and_timeouts(endpoint: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    queue = Queue(endpoint, looks=1, failure=b"The body is no readable image.")
    monkeypatch.setattr("sagemaker_entry.hosting.sagemaker_transports.time.sleep", queue.sleep)
    with pytest.raises(EndpointError, match=r"^endpoint slow failed: The body is no readable image\."):
        EndpointPredictor("slow", asynchronous=True)(image)
    queue.looks = 10**9
    queue.failure = None
    predictor = EndpointPredictor("slow", asynchronous=True)
    clock = iter(range(0, 10_000, 400))
    monkeypatch.setattr("sagemaker_entry.hosting.sagemaker_transports.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(EndpointError, match=r"no answer appeared in s3://answers-bucket/out/2\.out within 900 seconds"):
        predictor(image)


def test_without_permission_to_describe_the_endpoint_is_treated_as_real_time(endpoint: Aws) -> None:
    from sagemaker_entry.hosting.sagemaker_transports import async_output_path

    assert async_output_path(endpoint.session, "slow") == f"s3://{BUCKET}/out"
    assert async_output_path(endpoint.session, "none") is None
    endpoint.refuse("DescribeEndpoint", "AccessDeniedException", "not authorized")
    assert async_output_path(endpoint.session, "slow") is None
