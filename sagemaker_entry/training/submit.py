"""`train`: check the settings here, describe the job, and submit it through the SDK's ModelTrainer."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pspnet.config.folders import CHANNELS
from pspnet.config.parsing import Arguments, parse_arguments
from pspnet.config.reference import dump_yaml, help_text
from pspnet.config.schema import Config
from sagemaker_entry.aws.session import aws_errors, boto_session, find_bucket, find_role, local_region
from sagemaker_entry.training.job_log import follow_job
from sagemaker_entry.training.job_request import (
    CHECKPOINT_FOLDER,
    COMMAND,
    ENTRYPOINT_ARGUMENTS,
    REQUIREMENTS,
    Place,
    build_request,
    channel_uris,
    data_environment,
    default_bucket_name,
    hyperparameters,
    is_s3,
    local_channels,
    parse_uri,
    s3_folder,
    unique_name,
)
from sagemaker_entry.training.job_settings import JobSettings, read_settings
from sagemaker_entry.training.preflight import check_machine, count_local, print_warnings, require_fit_data
from sagemaker_entry.training.training_images import choose_image, image_python38
from sagemaker_entry.training.upload import check_objects, count_images, upload_channels

UNKNOWN_ACCOUNT, UNKNOWN_ROLE, UNKNOWN_REGION = "ACCOUNT_ID", "ROLE", "us-east-1"


def train_command(arguments: argparse.Namespace) -> int:
    """`train`: everything is checked before the first word goes to AWS; returns the exit code."""
    settings = read_settings(arguments)
    parsed = read_config(arguments.rest, settings, "BUCKET")
    if parsed.help_requested or parsed.print_config:
        print(help_text() if parsed.help_requested else dump_yaml(parsed.config), end="")
        return 0
    check_machine(settings)
    local_channels(parsed.config)
    print_warnings(parsed.config, settings)
    if settings.dry_run:
        return dry_run(arguments.rest, settings)
    session = boto_session(settings)
    request = prepare(session, arguments.rest, settings)
    name = submit(session, request, settings)
    print(f"Job: {name}\nConsole: {console_address(session.region_name, name)}", flush=True)
    if not settings.wait:
        return 0
    try:
        return follow_job(session, name)
    except KeyboardInterrupt:
        stop = f"aws sagemaker stop-training-job --training-job-name {name}"
        print(f"\nThe job goes on. Stop it with: {stop}", file=sys.stderr)
        return 130


def read_config(rest: list[str], settings: JobSettings, bucket: str) -> Arguments:
    """The project's settings among the arguments; channels that are not given are those that `upload` writes."""
    return parse_arguments(rest, data_environment(settings, bucket))


def image_of(settings: JobSettings, region: str) -> str:
    """The image that was given, or the one for the machine; raises ConfigError for an impossible pair."""
    return settings.image_uri or choose_image(settings.instance_type, region, settings.pytorch_version)


def dry_run(rest: list[str], settings: JobSettings) -> int:
    """Print the request as JSON, without credentials or network; what only AWS can tell is named on standard error."""
    region = local_region(settings)
    account = settings.role_account or UNKNOWN_ACCOUNT
    role = settings.role or UNKNOWN_ROLE
    role_arn = role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"
    bucket = settings.bucket or default_bucket_name(region or UNKNOWN_REGION, account)
    parsed = read_config(rest, settings, bucket)
    config = parsed.config
    channels = channel_uris(config, settings, bucket)
    samples = count_local(config)
    name = unique_name(settings.base_job_name, datetime.now().strftime("%Y%m%d%H%M%S"))
    place = Place(image_of(settings, region or UNKNOWN_REGION), role_arn, bucket, name)
    sent = hyperparameters(parsed, samples)
    if region is None:
        print(f"dry run: no region is set, so {UNKNOWN_REGION} stands for it; give --region.", file=sys.stderr)
    if not role_arn.startswith("arn:aws") or UNKNOWN_ACCOUNT in role_arn:
        print(f"dry run: {role_arn} stands for the role; give --role with its ARN.", file=sys.stderr)
    if UNKNOWN_ACCOUNT in bucket:
        print(f"dry run: {bucket} stands for the account's default bucket; give --bucket.", file=sys.stderr)
    if "num_training_samples" not in sent and channels:
        print(f"dry run: num_training_samples will be counted in {channels['train']}.", file=sys.stderr)
    if channels and "label_map" not in channels:
        print(f"dry run: a label_map channel is added if S3 holds one beside {channels['train']}.", file=sys.stderr)
    print(json.dumps(build_request(sent, channels, settings, place), indent=2, ensure_ascii=False))
    return 0


def prepare(session: Any, rest: list[str], settings: JobSettings) -> dict[str, Any]:
    """The request for a session's account: role, bucket, data uploaded where it is local, images counted."""
    image = image_of(settings, session.region_name)
    role_arn, bucket = find_role(session, settings), find_bucket(session, settings)
    parsed = read_config(rest, settings, bucket)
    config = parsed.config
    channels = channel_uris(config, settings, bucket)
    folders = local_channels(config)
    if folders:
        require_fit_data(folders, config, settings)
        upload_channels(session, folders, settings, bucket)
    samples = count_local(config)
    if channels:
        s3 = session.client("s3")
        check_objects(s3, channels, settings)
        add_label_map(s3, config, channels)
        if samples is None:
            with aws_errors(f"counting the images of {channels['train']}", settings):
                samples = count_images(s3, channels["train"])
    place = Place(image, role_arn, bucket, unique_name(settings.base_job_name, "0" * 14))
    return build_request(hyperparameters(parsed, samples), channels, settings, place)


def add_label_map(s3: Any, config: Config, channels: dict[str, str]) -> None:
    """Add the label_map channel where the data stand on S3 with one beside the others and none was given."""
    if "label_map" in channels or config.data is None or not is_s3(config.data):
        return
    uri = f"{s3_folder(config.data)}label_map/"
    bucket, prefix = parse_uri(uri)
    with aws_errors(f"looking into {uri}"):
        if s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"):
            channels["label_map"] = uri
            print(f"label_map: {uri}")


def submit(session: Any, request: Mapping[str, Any], settings: JobSettings) -> str:
    """Create the job through ModelTrainer, which uploads the source and names the job; returns the job's name."""
    from sagemaker_entry.training.job_source import stage_source

    with tempfile.TemporaryDirectory(prefix="pspnet-source-") as folder, aws_errors("submitting the job", settings):
        stage_source(Path(folder), image_python38(request["AlgorithmSpecification"]["TrainingImage"]))
        silence_sdk()
        # The SDK would ask IAM whether the role may do far more than a job without a VPC needs, and refuse a role with
        # least privilege. SageMaker itself says whether it can take on the role.
        os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
        trainer = make_trainer(session, request, settings, Path(folder))
        trainer.train(wait=False, logs=False)
        name: str = trainer._latest_training_job.training_job_name
    return name


def silence_sdk() -> None:
    """The SDK's log would repeat, over many lines, what this command says itself; its errors come as exceptions."""
    import sagemaker.train  # noqa: F401  (its loggers exist, with levels of their own, once it is loaded)

    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "sagemaker":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def make_trainer(session: Any, request: Mapping[str, Any], settings: JobSettings, source: Path) -> Any:
    """The ModelTrainer whose CreateTrainingJob request is the given one, but for the date in the job's name."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    bucket, _ = parse_uri(_channel_uri(request, "code"))

    class Trainer(ModelTrainer):  # type: ignore[misc]
        """Stages the source where the request says, whatever IAM's simulation says of the whole bucket, and starts the
        container as the request says."""

        def _resolve_staging_bucket(self) -> tuple[str, None]:
            return bucket, None

        def _create_training_job_args(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            job: dict[str, Any] = super()._create_training_job_args(*arguments, **options)
            job["algorithm_specification"].container_arguments = list(ENTRYPOINT_ARGUMENTS)
            return job

    algorithm, machines = request["AlgorithmSpecification"], request["ResourceConfig"]
    checkpoints = None
    if settings.spot or settings.checkpoint_s3_uri:
        place = {"s3_uri": settings.checkpoint_s3_uri} if settings.checkpoint_s3_uri else {}
        checkpoints = configs.CheckpointConfig(local_path=CHECKPOINT_FOLDER, **place)
    limit = {} if settings.wait_limit is None else {"max_wait_time_in_seconds": settings.wait_limit}
    trainer = Trainer(
        sagemaker_session=Session(boto_session=session, default_bucket=bucket, sagemaker_config=quiet_sdk_config()),
        role=request["RoleArn"],
        base_job_name=settings.base_job_name,
        input_s3_key_prefix=settings.prefix,
        training_image=algorithm["TrainingImage"],
        training_input_mode=algorithm["TrainingInputMode"],
        source_code=configs.SourceCode(source_dir=str(source), requirements=REQUIREMENTS, command=COMMAND),
        compute=configs.Compute(
            instance_type=machines["InstanceType"],
            instance_count=machines["InstanceCount"],
            volume_size_in_gb=machines["VolumeSizeInGB"],
            enable_managed_spot_training=settings.spot,
        ),
        stopping_condition=configs.StoppingCondition(max_runtime_in_seconds=settings.max_run, **limit),
        output_data_config=configs.OutputDataConfig(
            s3_output_path=request["OutputDataConfig"]["S3OutputPath"], compression_type="GZIP"
        ),
        checkpoint_config=checkpoints,
        hyperparameters=dict(request["HyperParameters"]),
        tags=[configs.Tag(key=key, value=value) for key, value in settings.tags] or None,
        input_data_config=[
            _trainer_channel(configs, channel)
            for channel in request["InputDataConfig"]
            if channel["ChannelName"] in CHANNELS
        ],
    )
    metrics = [configs.MetricDefinition(name=m["Name"], regex=m["Regex"]) for m in algorithm["MetricDefinitions"]]
    return trainer.with_metric_definitions(metrics)


def _channel_uri(request: Mapping[str, Any], name: str) -> str:
    channel = next(one for one in request["InputDataConfig"] if one["ChannelName"] == name)
    uri: str = channel["DataSource"]["S3DataSource"]["S3Uri"]
    return uri


def _trainer_channel(configs: Any, channel: Mapping[str, Any]) -> Any:
    source = channel["DataSource"]["S3DataSource"]
    s3 = configs.S3DataSource(
        s3_data_type=source["S3DataType"],
        s3_uri=source["S3Uri"],
        s3_data_distribution_type=source["S3DataDistributionType"],
    )
    return configs.Channel(
        channel_name=channel["ChannelName"],
        data_source=configs.DataSource(s3_data_source=s3),
        input_mode=channel["InputMode"],
    )


def quiet_sdk_config() -> dict[str, Any]:
    """The user's own SDK defaults, with the SDK's telemetry off unless they say otherwise."""
    from sagemaker.core.config.config import load_sagemaker_config

    config: dict[str, Any] = load_sagemaker_config() or {}
    config.setdefault("SchemaVersion", "1.0")
    kit = config.setdefault("SageMaker", {}).setdefault("PythonSDK", {}).setdefault("Modules", {})
    kit.setdefault("TelemetryOptOut", True)
    return config


def console_address(region: str, name: str) -> str:
    """Where the job stands in AWS's console."""
    return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}"
