"""`transform`: segment all images under an S3 prefix with a SageMaker batch transform, without an endpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from pspnet.config.command_line import parse_settings
from pspnet.errors import DataError
from sagemaker_entry.aws.account_settings import unique_name
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.resources import Group, is_unknown, remove
from sagemaker_entry.aws.s3_objects import default_bucket_name, is_s3
from sagemaker_entry.aws.session import boto_session, find_bucket, find_role, local_region
from sagemaker_entry.aws.waiting import follow_transform, print_log_end
from sagemaker_entry.hosting import hosting_requests as requests
from sagemaker_entry.hosting.deploy import UNKNOWN_REGION, image_of
from sagemaker_entry.hosting.endpoint_settings import TransformSettings
from sagemaker_entry.hosting.hosting_images import check_host, check_host_image
from sagemaker_entry.hosting.hosting_requests import HostContext
from sagemaker_entry.hosting.model_source import ensure_on_s3, kind_of, target_uri
from sagemaker_entry.hosting.transform_files import fetch_masks, list_images

MEGABYTE = 1024 * 1024
MOST_MEGABYTES = 100
"""AWS's limit for MaxPayloadInMB, and for MaxConcurrentTransforms times MaxPayloadInMB."""

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}

_TRANSFORM_SECONDS = 600
_LOG_GROUP = "/aws/sagemaker/TransformJobs"


@dataclass(frozen=True)
class Images:
    """Images of a transform: S3 prefix, common content type, bytes of the largest one."""

    uri: str
    content_type: str
    largest: int
    count: int | None = None


def transform_request(settings: TransformSettings, images: Images, model: str, name: str) -> dict[str, Any]:
    """CreateTransformJob: one request per object, with a payload limit for the largest image."""
    megabytes = max(6, -(-images.largest // MEGABYTE))
    limits = requests.container_environment(settings, requests.LARGEST_BYTES, _TRANSFORM_SECONDS)
    kept = ("TS_MAX_REQUEST_SIZE", "TS_MAX_RESPONSE_SIZE", "PSPNET_REQUEST_BYTES", "PSPNET_ANSWER_BYTES")
    return {
        "TransformJobName": name,
        "ModelName": model,
        "MaxConcurrentTransforms": max(1, min(settings.concurrent, MOST_MEGABYTES // megabytes)),
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": _TRANSFORM_SECONDS, "InvocationsMaxRetries": 3},
        "MaxPayloadInMB": megabytes,
        "BatchStrategy": "SingleRecord",
        # A model made for an endpoint has that endpoint's size limits; override them.
        "Environment": {key: limits[key] for key in kept},
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": images.uri}},
            "ContentType": images.content_type,
            "CompressionType": "None",
            "SplitType": "None",
        },
        "TransformOutput": {"S3OutputPath": settings.output, "Accept": settings.accept, "AssembleWith": "None"},
        "TransformResources": {"InstanceType": settings.instance_type, "InstanceCount": settings.instance_count},
        "Tags": requests.tag_list(settings, name),
    }


def transform_command(argv: Sequence[str], command: str) -> int:
    """Check, submit, wait, fetch; return the exit code."""
    text = "Write the masks of images on S3 with a batch transform, without an endpoint."
    settings = parse_settings(TransformSettings, argv, command, text)
    require_packages("boto3")
    check_host(settings.instance_type, "TransformInstanceType")
    if settings.image_uri is not None:
        check_host_image(settings.instance_type, settings.image_uri)
    name = unique_name(settings.base_name, datetime.now().strftime("%Y%m%d%H%M%S"))
    if settings.dry_run:
        return dry_run(settings, name)
    session = boto_session(settings)
    s3, client = session.client("s3"), session.client("sagemaker")
    found = list_images(s3, settings.images, CONTENT_TYPES, MOST_MEGABYTES * MEGABYTE)
    suffix = PurePosixPath(found[0].name).suffix.lower()
    images = Images(settings.images, CONTENT_TYPES[suffix], max(item.size for item in found), len(found))
    model = find_or_make_model(session, settings, name)
    request = transform_request(settings, images, model, name)
    made = Group(name, models=[name] if model == name else [])
    try:
        with aws_errors("submitting the batch transform", settings):
            client.create_transform_job(**request)
    except AwsError:
        remove(session, made, report=lambda line: print(f"{line} again.", file=sys.stderr))
        raise
    print(f"Batch transform: {name}, {images.count} images, model {model}", flush=True)
    if not settings.wait:
        print(f"The masks will be in {settings.output} as <image name>.out.")
        return 0
    return follow(session, settings, name, made, [item.name for item in found])


def dry_run(settings: TransformSettings, name: str) -> int:
    """Print the requests as JSON, without credentials or network."""
    region = local_region(settings) or UNKNOWN_REGION
    bucket = settings.bucket or default_bucket_name(region, settings.role_account or "ACCOUNT_ID")
    sent: dict[str, Any] = {}
    model = settings.model
    if is_s3(model) or kind_of(model) == "local":
        role = settings.role or "ROLE"
        role_arn = role if role.startswith("arn:") else f"arn:aws:iam::ACCOUNT_ID:role/{role}"
        uri = model if is_s3(model) else target_uri(settings, bucket, name)
        sent["CreateModel"] = _model_request(settings, name, image_of(settings, region), role_arn, uri)
        model = name
    print("dry run: content type and payload are placeholders; they depend on the images on S3.", file=sys.stderr)
    unknown = Images(settings.images, "image/jpeg", 0)
    sent["CreateTransformJob"] = transform_request(settings, unknown, model, name)
    print(json.dumps(sent, indent=2, ensure_ascii=False))
    return 0


def _model_request(settings: TransformSettings, name: str, image: str, role_arn: str, uri: str) -> Mapping[str, Any]:
    environment = requests.container_environment(settings, requests.LARGEST_BYTES, _TRANSFORM_SECONDS)
    return requests.model_request(settings, HostContext(name, name, image, role_arn, uri, ""), environment)


def find_or_make_model(session: Any, settings: TransformSettings, name: str) -> str:
    """Return the name of the existing model, or create one from an archive, a directory or a job's artifact."""
    from botocore.exceptions import ClientError

    client, model = session.client("sagemaker"), settings.model
    if kind_of(model) == "job":
        with aws_errors(f"describing the model {model}", settings):
            try:
                client.describe_model(ModelName=model)
                return model
            except ClientError as error:
                if not is_unknown(error):
                    raise
    image, role_arn = image_of(settings, session.region_name), find_role(session, settings)

    @cache
    def bucket() -> str:
        return find_bucket(session, settings)

    try:
        uri = ensure_on_s3(session, settings, bucket, name)
    except AwsError as error:
        if kind_of(model) == "job" and error.__cause__ is not None and is_unknown(error.__cause__):
            raise AwsError(f"{model}: no SageMaker model or training job of this name.") from error
        raise
    with aws_errors("creating the model", settings):
        client.create_model(**_model_request(settings, name, image, role_arn, uri))
    return name


def follow(session: Any, settings: TransformSettings, name: str, made: Group, images: list[str]) -> int:
    """Wait for the job's end, remove the model created for it, fetch the masks."""
    client, output = session.client("sagemaker"), settings.output
    try:
        description = follow_transform(client, name)
    except KeyboardInterrupt:
        stop = f"aws sagemaker stop-transform-job --transform-job-name {name}"
        print(f"\nThe batch transform keeps running. Stop it with: {stop}", file=sys.stderr)
        return 130
    remove(session, made, report=lambda line: print(f"{line}, which is no longer needed."))
    status = description["TransformJobStatus"]
    if status != "Completed":
        print_log_end(session, name, _LOG_GROUP, f"{name}/")
        reason = description.get("FailureReason") or "SageMaker gave no reason"
        raise AwsError(f"the batch transform {name} has {status.lower()}: {reason}. Earlier masks are in {output}.")
    print(f"{name}: Completed. The masks are in {output}, named like {output}{images[0]}.out")
    if settings.fetch is None:
        return 0
    missing = fetch_masks(session.client("s3"), output, images, settings.fetch)
    if missing:
        raise DataError(f"{output}: no mask of {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.")
    print(f"{len(images)} masks in {settings.fetch}")
    return 0
