"""`deploy`: bring a model to S3, create model, configuration and endpoint (or update one), wait, set autoscaling."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sagemaker_entry.aws.account_settings import LONGEST_BASE_NAME, unique_name
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.resources import Group, describe_endpoint, find_groups, owner_of, remove, remove_scaling
from sagemaker_entry.aws.s3_objects import default_bucket_name
from sagemaker_entry.aws.session import boto_session, find_bucket, find_role, local_region
from sagemaker_entry.aws.waiting import follow_endpoint, print_log_end
from sagemaker_entry.hosting import hosting_requests as requests
from sagemaker_entry.hosting.endpoint_settings import HostSettings, read_host_settings
from sagemaker_entry.hosting.hosting_images import check_host, check_host_image, choose_host_image
from sagemaker_entry.hosting.hosting_requests import HostPlace
from sagemaker_entry.hosting.model_source import bring_to_s3, kind_of, look_locally, target_uri

UNKNOWN_ACCOUNT, UNKNOWN_ROLE, UNKNOWN_REGION = "ACCOUNT_ID", "ROLE", "us-east-1"

SERVERLESS_NOTE = (
    "serverless: no GPU; requests and answers up to 4 MB; container images up to 10 GB; the first request after a "
    "pause waits until the container is up"
)


def deploy_command(arguments: argparse.Namespace) -> int:
    """`deploy`: everything is checked before the first thing is created; returns the exit code."""
    settings = read_host_settings(arguments)
    kind = kind_of(arguments.model)
    machine = None if settings.serverless else settings.instance_type
    if machine is not None:
        check_host(machine)
    if settings.image_uri is not None:
        check_host_image(machine, settings.image_uri)
    if settings.serverless:
        print(f"note: {SERVERLESS_NOTE}.", file=sys.stderr)
    stamp = datetime.now().strftime("%Y%m%d%H%M%S")
    if settings.dry_run:
        return dry_run(arguments.model, kind, settings, stamp)
    session = boto_session(settings)
    client = session.client("sagemaker")
    endpoint, name = names(settings, stamp)
    existing = check_name(client, settings, endpoint)
    place = prepare(session, arguments.model, settings, endpoint, name)
    create(session, settings, place)
    print(f"Endpoint: {endpoint}\nConsole: {console_address(session.region_name, endpoint)}", flush=True)
    if not settings.wait:
        print(f"It is being created. `python -m sagemaker_entry status {endpoint}` says when it answers.")
        return 0
    try:
        finish(session, settings, place, existing)
    except KeyboardInterrupt:
        print(f"\nThe endpoint goes on, and costs. Delete it with: {_delete_hint(endpoint)}", file=sys.stderr)
        return 130
    print(f"{endpoint}: in service. Ask it with: python -m sagemaker_entry predict {endpoint} IMAGE --output DIR")
    print(_cost_line(settings, endpoint))
    return 0


def names(settings: HostSettings, stamp: str) -> tuple[str, str]:
    """Name of the endpoint, and that of its new model and configuration."""
    if settings.endpoint_name is None:
        name = unique_name(settings.base_name, stamp)
        return name, name
    return settings.endpoint_name, unique_name(settings.endpoint_name[:LONGEST_BASE_NAME].rstrip("-"), stamp)


def image_of(settings: HostSettings, region: str) -> str:
    """The image that was given (and judged before), or AWS's for the machine."""
    if settings.image_uri is not None:
        return settings.image_uri
    return choose_host_image(None if settings.serverless else settings.instance_type, region)


def requests_of(settings: HostSettings, place: HostPlace) -> dict[str, dict[str, Any]]:
    """Every request that a deployment sends, by the name of its operation, in their order."""
    seconds = requests.LONG_SECONDS if settings.asynchronous else requests.REQUEST_SECONDS
    environment = requests.container_environment(settings, requests.largest_body(settings), seconds)
    sent = {
        "CreateModel": requests.model_request(settings, place, environment),
        "CreateEndpointConfig": requests.endpoint_config_request(settings, place),
    }
    if settings.update:
        sent["UpdateEndpoint"] = requests.update_request(place)
    else:
        sent["CreateEndpoint"] = requests.endpoint_request(settings, place)
    if settings.scales:
        sent["RegisterScalableTarget"] = requests.target_request(settings, place.endpoint)
        sent["PutScalingPolicy"] = requests.policy_request(settings, place.endpoint)
    return sent


def dry_run(model: str, kind: str, settings: HostSettings, stamp: str) -> int:
    """Print the requests as JSON, without credentials or network; what only AWS can tell is named on standard error."""
    if kind == "local":
        look_locally(Path(model))
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
        print(f"dry run: no region is set, so {UNKNOWN_REGION} stands for it; give --region.", file=sys.stderr)
    if UNKNOWN_ACCOUNT in role_arn or role == UNKNOWN_ROLE:
        print(f"dry run: {role_arn} stands for the role; give --role with its ARN.", file=sys.stderr)
    if UNKNOWN_ACCOUNT in bucket and (kind != "s3" or settings.asynchronous or settings.data_capture):
        print(f"dry run: {bucket} stands for the account's default bucket; give --bucket.", file=sys.stderr)
    if kind == "job":
        print(f"dry run: {model_uri} stands for the artifact of the job {model}.", file=sys.stderr)
    place = HostPlace(endpoint, name, image_of(settings, region or UNKNOWN_REGION), role_arn, model_uri, bucket)
    print(json.dumps(requests_of(settings, place), indent=2, ensure_ascii=False))
    return 0


def check_name(client: Any, settings: HostSettings, endpoint: str) -> dict[str, Any] | None:
    """The description of the endpoint to update, None for a new one; raises AwsError where the name cannot be used."""
    found = describe_endpoint(client, endpoint)
    if found is None:
        if settings.update:
            raise AwsError(f"there is no endpoint {endpoint} to update; leave out --update to create it.")
        return None
    status = found["EndpointStatus"]
    if not settings.update:
        raise AwsError(
            f"there is already an endpoint {endpoint} ({status}); give --update to give it this model, another "
            f"--endpoint_name, or delete it: {_delete_hint(endpoint)}"
        )
    if status != "InService":
        raise AwsError(f"the endpoint {endpoint} is {status}; it can be updated when it is InService.")
    with aws_errors(f"asking about the endpoint {endpoint}"):
        if owner_of(client, found["EndpointArn"]) is None:
            raise AwsError(f"the endpoint {endpoint} was not made by this project, so it is left alone.")
        config = client.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    if bool(config["ProductionVariants"][0].get("ServerlessConfig")) != settings.serverless:
        raise AwsError(
            f"the endpoint {endpoint} is {'on machines' if settings.serverless else 'serverless'}, and SageMaker does "
            "not change that; deploy under another --endpoint_name."
        )
    return found


def prepare(session: Any, model: str, settings: HostSettings, endpoint: str, name: str) -> HostPlace:
    """All that the requests need: image, role, bucket where one is used, and the model's archive on S3."""
    image = image_of(settings, session.region_name)
    role_arn = find_role(session, settings)

    @cache
    def bucket() -> str:
        return find_bucket(session, settings)

    model_uri = bring_to_s3(session, model, settings, bucket, name)
    keeps = (settings.asynchronous and settings.output_path is None) or settings.data_capture > 0
    return HostPlace(endpoint, name, image, role_arn, model_uri, bucket() if keeps else "")


def create(session: Any, settings: HostSettings, place: HostPlace) -> None:
    """Create model, configuration and endpoint. Where one is refused, those before it are removed again."""
    client, sent = session.client("sagemaker"), requests_of(settings, place)
    made = Group(place.endpoint)
    try:
        with aws_errors("creating the model", settings):
            client.create_model(**sent["CreateModel"])
        made.models.append(place.name)
        with aws_errors("creating the endpoint configuration", settings):
            client.create_endpoint_config(**sent["CreateEndpointConfig"])
        made.configs.append(place.name)
        with aws_errors(f"{'updating' if settings.update else 'creating'} the endpoint", settings):
            if settings.update:
                # AWS refuses an update that changes the machine while autoscaling watches it.
                if remove_scaling(session, place.endpoint) and not settings.scales:
                    print(f"warning: {place.endpoint} had autoscaling, and has none now; --max_instances sets it.")
                client.update_endpoint(**sent["UpdateEndpoint"])
            else:
                client.create_endpoint(**sent["CreateEndpoint"])
    except (AwsError, KeyboardInterrupt):
        undo(session, made)
        raise


def undo(session: Any, made: Group) -> None:
    """Remove what a failed deployment made; what cannot be removed is named."""
    if not made:
        return
    try:
        remove(session, made, say=lambda line: print(f"{line} again.", file=sys.stderr))
    except AwsError as error:
        left = ", ".join(made.lines())
        print(f"warning: {error} Made and perhaps still there: {left}.", file=sys.stderr)


def finish(session: Any, settings: HostSettings, place: HostPlace, existing: dict[str, Any] | None) -> None:
    """Wait until the endpoint answers, set its autoscaling, remove what an update replaced. Raises AwsError."""
    client = session.client("sagemaker")
    description = follow_endpoint(client, place.endpoint)
    status, reason = description["EndpointStatus"], description.get("FailureReason") or "SageMaker gave no reason"
    if status != "InService" or description["EndpointConfigName"] != place.name:
        print_log_end(session, place.endpoint)
        made = Group(place.endpoint, configs=[place.name], models=[place.name])
        if existing is None:
            made.endpoint = place.endpoint
        if existing is None or status == "InService":
            undo(session, made)
        kept = " It still has the model that it had before." if existing is not None and status == "InService" else ""
        raise AwsError(f"the endpoint {place.endpoint} failed ({status}): {reason.rstrip('.')}.{kept}")
    if settings.scales:
        set_scaling(session, settings, place)
    if existing is not None:
        old = find_groups(client, place.endpoint).get(place.endpoint, Group(place.endpoint))
        configs, models = ([name for name in kind if name != place.name] for kind in (old.configs, old.models))
        remove(session, Group(place.endpoint, configs=configs, models=models))


def set_scaling(session: Any, settings: HostSettings, place: HostPlace) -> None:
    """Let the number of machines follow the load. Raises AwsError; the endpoint then runs without it."""
    client, sent = session.client("application-autoscaling"), requests_of(settings, place)
    with aws_errors(f"the endpoint {place.endpoint} is in service, but setting its autoscaling", settings):
        client.register_scalable_target(**sent["RegisterScalableTarget"])
        client.put_scaling_policy(**sent["PutScalingPolicy"])
    limits = sent["RegisterScalableTarget"]
    print(f"Autoscaling: {limits['MinCapacity']} to {limits['MaxCapacity']} machines.")


def console_address(region: str, name: str) -> str:
    """Where the endpoint stands in AWS's console."""
    return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/endpoints/{name}"


def _cost_line(settings: HostSettings, endpoint: str) -> str:
    hint = f"Delete it with: {_delete_hint(endpoint)}"
    if settings.serverless:
        return f"It is billed by request. {hint}"
    return f"It costs {settings.instance_type} x {settings.instance_count} by the hour until it is deleted. {hint}"


def _delete_hint(endpoint: str) -> str:
    return f"python -m sagemaker_entry delete {endpoint}"
