"""Requests that host a model, field by field as AWS documents them. Pure: no AWS package, no network, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_entry.aws.resources import PROJECT_TAG, VARIANT, scalable_target
from sagemaker_entry.hosting.endpoint_settings import HostSettings, ModelSettings

CODE_FOLDER = "/opt/ml/model/code"

REALTIME_BYTES = 6_291_456
"""Largest request and answer of a real-time endpoint, from the API reference of InvokeEndpoint."""
SERVERLESS_BYTES = 4_000_000
"""Largest request and answer of a serverless endpoint."""
LARGEST_BYTES = 100_000_000
"""Largest image and answer of a batch transform (AWS's limit) or an asynchronous endpoint (ours)."""
REQUEST_SECONDS = 60
"""SageMaker's time limit for one request."""
LONG_SECONDS = 900

_STARTUP_SECONDS = 600
_FRAME_BYTES = 1_000_000  # upper bound of TorchServe's framing around a body


@dataclass(frozen=True)
class HostContext:
    """Values that depend on the account, the region and the time. `name` is that of the model and configuration."""

    endpoint: str
    name: str
    image_uri: str
    role_arn: str
    model_uri: str
    bucket: str


def tag_list(settings: ModelSettings, owner: str) -> list[dict[str, str]]:
    """Return the user's tags and the project's, whose value is the owning endpoint or transform."""
    return [{"Key": key, "Value": value} for key, value in (*settings.tags, (PROJECT_TAG, owner))]


def container_environment(settings: ModelSettings, largest: int, seconds: int = REQUEST_SECONDS) -> dict[str, str]:
    """Return the container's environment variables; --env overrides them.

    Args:
        largest: largest request or answer in bytes.
        seconds: time limit of one request.

    SAGEMAKER_* are read by AWS's PyTorch inference toolkit, TS_* by its TorchServe (whose own limits are 6.5 MB),
    PSPNET_* by the handlers and by `pspnet serve`.
    """
    return {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": CODE_FOLDER,
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
        # A request without Accept gets the mask, as from the built-in algorithm; the toolkit's own default is JSON.
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "image/png",
        "SAGEMAKER_MODEL_SERVER_WORKERS": str(settings.workers),
        "SAGEMAKER_MODEL_SERVER_TIMEOUT": str(seconds),
        # Above the handlers' limits, so that a body that is too large gets their error and not a broken frame.
        "TS_MAX_REQUEST_SIZE": str(largest + _FRAME_BYTES),
        "TS_MAX_RESPONSE_SIZE": str(largest + _FRAME_BYTES),
        "PSPNET_REQUEST_BYTES": str(largest),
        "PSPNET_ANSWER_BYTES": str(largest),
        "PSPNET_WORKERS": str(settings.workers),
        **settings.variables,
    }


def largest_body(settings: HostSettings) -> int:
    """Return the largest request and answer of this kind of endpoint in bytes."""
    if settings.serverless:
        return SERVERLESS_BYTES
    return LARGEST_BYTES if settings.asynchronous else REALTIME_BYTES


def model_request(settings: ModelSettings, context: HostContext, environment: Mapping[str, str]) -> dict[str, Any]:
    """CreateModel."""
    request: dict[str, Any] = {
        "ModelName": context.name,
        "PrimaryContainer": {
            "Image": context.image_uri,
            "Mode": "SingleModel",
            "ModelDataUrl": context.model_uri,
            "Environment": dict(environment),
        },
        "ExecutionRoleArn": context.role_arn,
        "Tags": tag_list(settings, context.endpoint),
    }
    if settings.isolated:
        request["EnableNetworkIsolation"] = True
    return request


def endpoint_config_request(settings: HostSettings, context: HostContext) -> dict[str, Any]:
    """CreateEndpointConfig: one variant on instances or serverless; asynchronous inference and data capture if set."""
    request: dict[str, Any] = {
        "EndpointConfigName": context.name,
        "ProductionVariants": [_variant(settings, context)],
        "Tags": tag_list(settings, context.endpoint),
    }
    if settings.asynchronous:
        answers = settings.output_path or f"s3://{context.bucket}/{settings.prefix}/answers/{context.endpoint}"
        request["AsyncInferenceConfig"] = {
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": settings.concurrency or 2},
            "OutputConfig": {"S3OutputPath": answers, "S3FailurePath": f"{answers.rstrip('/')}/failed"},
        }
    if settings.data_capture:
        request["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": settings.data_capture,
            "DestinationS3Uri": f"s3://{context.bucket}/{settings.prefix}/capture",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        }
    return request


def _variant(settings: HostSettings, context: HostContext) -> dict[str, Any]:
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": context.name, "InitialVariantWeight": 1.0}
    if settings.serverless:
        limits = {"MemorySizeInMB": settings.memory, "MaxConcurrency": settings.concurrency or 5}
        return {**variant, "ServerlessConfig": limits}
    return {
        **variant,
        "InstanceType": settings.instance_type,
        "InitialInstanceCount": settings.instance_count,
        # The container unpacks hundreds of megabytes, installs its requirements and warms up before it is ready.
        "ModelDataDownloadTimeoutInSeconds": _STARTUP_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": _STARTUP_SECONDS,
    }


def endpoint_request(settings: HostSettings, context: HostContext) -> dict[str, Any]:
    """CreateEndpoint."""
    return {
        "EndpointName": context.endpoint,
        "EndpointConfigName": context.name,
        "Tags": tag_list(settings, context.endpoint),
    }


def update_request(context: HostContext) -> dict[str, Any]:
    """UpdateEndpoint: AWS starts the new instances next to the old ones and switches when they are ready."""
    return {"EndpointName": context.endpoint, "EndpointConfigName": context.name}


def target_request(settings: HostSettings, endpoint: str) -> dict[str, Any]:
    """RegisterScalableTarget."""
    low = 1 if settings.min_instances is None else settings.min_instances
    return {**scalable_target(endpoint), "MinCapacity": low, "MaxCapacity": settings.max_instances}


def policy_name(endpoint: str) -> str:
    """Name of the endpoint's scaling policy."""
    return f"{endpoint}-requests"


def policy_request(settings: HostSettings, endpoint: str) -> dict[str, Any]:
    """PutScalingPolicy: keep the requests per instance and minute (asynchronous: the queued ones) near the target."""
    metric: dict[str, Any]
    if settings.asynchronous:
        metric = {
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
                "Statistic": "Average",
            }
        }
    else:
        kind = "SageMakerVariantInvocationsPerInstance"
        metric = {"PredefinedMetricSpecification": {"PredefinedMetricType": kind}}
    return {
        "PolicyName": policy_name(endpoint),
        **scalable_target(endpoint),
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": float(settings.target_invocations),
            **metric,
            # An instance takes minutes to start: scale out quickly, scale in slowly.
            "ScaleOutCooldown": 60,
            "ScaleInCooldown": 300,
        },
    }
