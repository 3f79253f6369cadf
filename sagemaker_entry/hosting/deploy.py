"""`deploy`: upload a model to S3, create model, configuration and endpoint (or update it), wait, set autoscaling."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from pspnet.config.command_line import parse_settings
from sagemaker_entry.aws.account_settings import LONGEST_BASE_NAME, unique_name
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.resources import Group, describe_endpoint, find_groups, owner_of, remove, remove_scaling
from sagemaker_entry.aws.s3_objects import default_bucket_name
from sagemaker_entry.aws.session import boto_session, find_bucket, find_role, local_region
from sagemaker_entry.aws.waiting import follow_endpoint, print_log_end
from sagemaker_entry.hosting import hosting_requests as requests
from sagemaker_entry.hosting.endpoint_settings import HostSettings, ModelSettings
from sagemaker_entry.hosting.hosting_images import check_host, check_host_image, choose_host_image
from sagemaker_entry.hosting.hosting_requests import HostContext
from sagemaker_entry.hosting.model_source import ensure_on_s3, inspect_local, kind_of, target_uri

UNKNOWN_ACCOUNT, UNKNOWN_ROLE, UNKNOWN_REGION = "ACCOUNT_ID", "ROLE", "us-east-1"

SERVERLESS_NOTE = (
    "serverless: no GPU; requests and answers up to 4 MB; container images up to 10 GB; the first request after idle "
    "time waits for a cold start"
)


_TEXT = """Host a model: a local model directory or model.tar.gz, s3://.../model.tar.gz, or the name of a completed
training job. It is checked first; if code/ is missing, it is added and the model uploaded. An endpoint on instances is
billed until it is deleted."""


def deploy_command(argv: Sequence[str], command: str) -> int:
    """Check everything before creating anything, deploy, and return the exit code."""
    settings = parse_settings(HostSettings, argv, command, _TEXT)
    require_packages("boto3")
    kind = kind_of(settings.model)
    if settings.host_type is not None:
        check_host(settings.host_type)
    if settings.image_uri is not None:
        check_host_image(settings.host_type, settings.image_uri)
    if settings.serverless:
        print(f"note: {SERVERLESS_NOTE}.", file=sys.stderr)
    stamp = datetime.now().strftime("%Y%m%d%H%M%S")
    if settings.dry_run:
        return dry_run(kind, settings, stamp)
    session = boto_session(settings)
    client = session.client("sagemaker")
    endpoint, name = names(settings, stamp)
    existing = check_name(client, settings, endpoint)
    context = prepare(session, settings, endpoint, name)
    create(session, settings, context)
    print(f"Endpoint: {endpoint}\nConsole: {console_address(session.region_name, endpoint)}", flush=True)
    if not settings.wait:
        print(f"It is being created. `python -m sagemaker_entry status {endpoint}` shows its state.")
        return 0
    try:
        finish(session, settings, context, existing)
    except KeyboardInterrupt:
        print(f"\nThe endpoint keeps running and is billed. Delete it with: {_delete_hint(endpoint)}", file=sys.stderr)
        return 130
    print(f"{endpoint}: in service. Query it with: python -m sagemaker_entry predict {endpoint} IMAGE --output DIR")
    print(_cost_line(settings, endpoint))
    return 0


def names(settings: HostSettings, stamp: str) -> tuple[str, str]:
    """Return the name of the endpoint, and that of its new model and configuration."""
    if settings.endpoint_name is None:
        name = unique_name(settings.base_name, stamp)
        return name, name
    return settings.endpoint_name, unique_name(settings.endpoint_name[:LONGEST_BASE_NAME].rstrip("-"), stamp)


def image_of(settings: ModelSettings, region: str) -> str:
    """Return the given image (already checked), or AWS's for the machine."""
    return settings.image_uri or choose_host_image(settings.host_type, region)


def requests_of(settings: HostSettings, context: HostContext) -> dict[str, dict[str, Any]]:
    """Return every request of a deployment by operation name, in the order of sending."""
    seconds = requests.LONG_SECONDS if settings.asynchronous else requests.REQUEST_SECONDS
    environment = requests.container_environment(settings, requests.largest_body(settings), seconds)
    sent = {
        "CreateModel": requests.model_request(settings, context, environment),
        "CreateEndpointConfig": requests.endpoint_config_request(settings, context),
    }
    if settings.update:
        sent["UpdateEndpoint"] = requests.update_request(context)
    else:
        sent["CreateEndpoint"] = requests.endpoint_request(settings, context)
    if settings.scales:
        sent["RegisterScalableTarget"] = requests.target_request(settings, context.endpoint)
        sent["PutScalingPolicy"] = requests.policy_request(settings, context.endpoint)
    return sent


def dry_run(kind: str, settings: HostSettings, stamp: str) -> int:
    """Print the requests as JSON, without credentials or network; report placeholders on standard error."""
    model = settings.model
    if kind == "local":
        inspect_local(Path(model))
    region = local_region(settings)
    account = settings.role_account or UNKNOWN_ACCOUNT
    role = settings.role or UNKNOWN_ROLE
    role_arn = role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"
    bucket = settings.bucket or default_bucket_name(region or UNKNOWN_REGION, account)
    endpoint, name = names(settings, stamp)
    model_uri = {
        "s3": model,
        "local": target_uri(settings, bucket, name),
        "job": f"s3://{bucket}/{settings.prefix}/output/{model}/output/model.tar.gz",
    }[kind]
    if region is None:
        print(f"dry run: no region is set; {UNKNOWN_REGION} is a placeholder; give --region.", file=sys.stderr)
    if UNKNOWN_ACCOUNT in role_arn or role == UNKNOWN_ROLE:
        print(f"dry run: {role_arn} is a placeholder for the role; give --role with its ARN.", file=sys.stderr)
    if UNKNOWN_ACCOUNT in bucket and (kind != "s3" or settings.asynchronous or settings.data_capture):
        print(f"dry run: {bucket} is a placeholder for the account's default bucket; give --bucket.", file=sys.stderr)
    if kind == "job":
        print(f"dry run: {model_uri} is a placeholder for the artifact of the job {model}.", file=sys.stderr)
    context = HostContext(endpoint, name, image_of(settings, region or UNKNOWN_REGION), role_arn, model_uri, bucket)
    print(json.dumps(requests_of(settings, context), indent=2, ensure_ascii=False))
    return 0


def check_name(client: Any, settings: HostSettings, endpoint: str) -> dict[str, Any] | None:
    """Return the description of the endpoint to update, None for a new one. Raises AwsError for an unusable name."""
    found = describe_endpoint(client, endpoint)
    if found is None:
        if settings.update:
            raise AwsError(f"no such endpoint {endpoint} to update; leave out --update to create it.")
        return None
    status = found["EndpointStatus"]
    if not settings.update:
        raise AwsError(
            f"the endpoint {endpoint} already exists ({status}); give --update to deploy this model to it, another "
            f"--endpoint_name, or delete it: {_delete_hint(endpoint)}"
        )
    if status != "InService":
        raise AwsError(f"the endpoint {endpoint} is {status}; it can be updated when it is InService.")
    with aws_errors(f"describing the endpoint {endpoint}"):
        if owner_of(client, found["EndpointArn"]) is None:
            raise AwsError(f"the endpoint {endpoint} was not created by this project, so it is not updated.")
        config = client.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    if bool(config["ProductionVariants"][0].get("ServerlessConfig")) != settings.serverless:
        raise AwsError(
            f"the endpoint {endpoint} is {'on instances' if settings.serverless else 'serverless'}, and SageMaker "
            "cannot change that; deploy under another --endpoint_name."
        )
    return found


def prepare(session: Any, settings: HostSettings, endpoint: str, name: str) -> HostContext:
    """Resolve image, role and bucket (if used), and upload the model's archive if needed."""
    image = image_of(settings, session.region_name)
    role_arn = find_role(session, settings)

    @cache
    def bucket() -> str:
        return find_bucket(session, settings)

    model_uri = ensure_on_s3(session, settings, bucket, name)
    keeps = (settings.asynchronous and settings.output_path is None) or settings.data_capture > 0
    return HostContext(endpoint, name, image, role_arn, model_uri, bucket() if keeps else "")


def create(session: Any, settings: HostSettings, context: HostContext) -> None:
    """Create model, configuration and endpoint. After a failure, the resources already created are removed."""
    client, sent = session.client("sagemaker"), requests_of(settings, context)
    made = Group(context.endpoint)
    try:
        with aws_errors("creating the model", settings):
            client.create_model(**sent["CreateModel"])
        made.models.append(context.name)
        with aws_errors("creating the endpoint configuration", settings):
            client.create_endpoint_config(**sent["CreateEndpointConfig"])
        made.configs.append(context.name)
        with aws_errors(f"{'updating' if settings.update else 'creating'} the endpoint", settings):
            if settings.update:
                # AWS refuses an update that changes the instance type while autoscaling is registered.
                if remove_scaling(session, context.endpoint) and not settings.scales:
                    print(f"warning: autoscaling of {context.endpoint} was removed; --max_instances sets it.")
                client.update_endpoint(**sent["UpdateEndpoint"])
            else:
                client.create_endpoint(**sent["CreateEndpoint"])
    except (AwsError, KeyboardInterrupt):
        undo(session, made)
        raise


def undo(session: Any, made: Group) -> None:
    """Remove the resources of a failed deployment; print those that cannot be removed."""
    if not made:
        return
    try:
        remove(session, made, report=lambda line: print(f"{line} again.", file=sys.stderr))
    except AwsError as error:
        left = ", ".join(made.lines())
        print(f"warning: {error} These may still exist: {left}.", file=sys.stderr)


def finish(session: Any, settings: HostSettings, context: HostContext, existing: dict[str, Any] | None) -> None:
    """Wait until the endpoint is in service, set its autoscaling, remove replaced resources. Raises AwsError."""
    client = session.client("sagemaker")
    description = follow_endpoint(client, context.endpoint)
    status, reason = description["EndpointStatus"], description.get("FailureReason") or "SageMaker gave no reason"
    if status != "InService" or description["EndpointConfigName"] != context.name:
        print_log_end(session, context.endpoint)
        made = Group(context.endpoint, configs=[context.name], models=[context.name])
        if existing is None:
            made.endpoint = context.endpoint
        if existing is None or status == "InService":
            undo(session, made)
        kept = " It still serves the previous model." if existing is not None and status == "InService" else ""
        raise AwsError(f"the endpoint {context.endpoint} failed ({status}): {reason.rstrip('.')}.{kept}")
    if settings.scales:
        set_scaling(session, settings, context)
    if existing is not None:
        old = find_groups(client, context.endpoint).get(context.endpoint, Group(context.endpoint))
        configs, models = ([name for name in kind if name != context.name] for kind in (old.configs, old.models))
        remove(session, Group(context.endpoint, configs=configs, models=models))


def set_scaling(session: Any, settings: HostSettings, context: HostContext) -> None:
    """Register autoscaling. Raises AwsError; the endpoint then runs without it."""
    client, sent = session.client("application-autoscaling"), requests_of(settings, context)
    with aws_errors(f"the endpoint {context.endpoint} is in service, but setting its autoscaling", settings):
        client.register_scalable_target(**sent["RegisterScalableTarget"])
        client.put_scaling_policy(**sent["PutScalingPolicy"])
    limits = sent["RegisterScalableTarget"]
    print(f"Autoscaling: {limits['MinCapacity']} to {limits['MaxCapacity']} machines.")


def console_address(region: str, name: str) -> str:
    """Return the endpoint's page in the AWS console."""
    return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/endpoints/{name}"


def _cost_line(settings: HostSettings, endpoint: str) -> str:
    hint = f"Delete it with: {_delete_hint(endpoint)}"
    if settings.serverless:
        return f"It is billed by request. {hint}"
    return f"It is billed as {settings.instance_type} x {settings.instance_count} by the hour until deleted. {hint}"


def _delete_hint(endpoint: str) -> str:
    return f"python -m sagemaker_entry delete {endpoint}"
