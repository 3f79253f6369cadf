"""`train`: check the settings locally, build the request, and submit it through the SDK's ModelTrainer."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pspnet.config.folders import CHANNELS
from pspnet.config.parsing import Arguments, parse_arguments
from pspnet.config.schema import Config
from sagemaker_entry.aws.account_settings import unique_name
from sagemaker_entry.aws.aws_errors import aws_errors
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.s3_objects import default_bucket_name, is_s3, parse_uri, s3_folder
from sagemaker_entry.aws.session import boto_session, find_bucket, find_role, local_region
from sagemaker_entry.training.job_log import follow_job
from sagemaker_entry.training.job_request import (
    CHECKPOINT_FOLDER,
    COMMAND,
    ENTRYPOINT_ARGUMENTS,
    REQUIREMENTS,
    JobContext,
    build_request,
    channel_uris,
    data_environment,
    hyperparameters,
    local_channels,
)
from sagemaker_entry.training.job_settings import JobSettings, parse_job
from sagemaker_entry.training.preflight import check_machine, count_local, print_warnings, require_fit_data
from sagemaker_entry.training.training_images import choose_image, image_python38
from sagemaker_entry.training.upload import check_objects, count_images, upload_channels

UNKNOWN_ACCOUNT, UNKNOWN_ROLE, UNKNOWN_REGION = "ACCOUNT_ID", "ROLE", "us-east-1"


_TEXT = """Train as a SageMaker job. In addition to the settings below, every setting of train.py is a flag: --config
FILE, --epochs 20, --data s3://bucket/prefix, --train s3://bucket/images, ... (`pspnet train --help` lists them).
Channels default to those that `upload` wrote. Settings are checked locally before anything is sent."""


def train_command(argv: Sequence[str], command: str) -> int:
    """Check everything before the first request to AWS, train, and return the exit code."""
    parsed = parse_job(JobSettings, argv, data_environment("BUCKET", "PREFIX"), command, _TEXT)
    settings = parsed.more[0]
    require_packages("sagemaker", "boto3")
    check_machine(settings)
    local_channels(parsed.config)
    print_warnings(parsed.config, settings)
    if settings.dry_run:
        return dry_run(argv, settings)
    session = boto_session(settings)
    request = prepare(session, argv, settings)
    name = submit(session, request, settings)
    print(f"Job: {name}\nConsole: {console_address(session.region_name, name)}", flush=True)
    if not settings.wait:
        return 0
    try:
        return follow_job(session, name)
    except KeyboardInterrupt:
        stop = f"aws sagemaker stop-training-job --training-job-name {name}"
        print(f"\nThe job keeps running. Stop it with: {stop}", file=sys.stderr)
        return 130


def read_config(argv: Sequence[str], settings: JobSettings, bucket: str) -> Arguments:
    """Parse the training settings; missing channels default to those that `upload` writes."""
    return parse_arguments(argv, data_environment(bucket, settings.prefix), more=[type(settings)])


def image_of(settings: JobSettings, region: str) -> str:
    """Return the given image, or the one for the instance type. Raises ConfigError for an impossible pair."""
    return settings.image_uri or choose_image(settings.instance_type, region, settings.pytorch_version)


def dry_run(argv: Sequence[str], settings: JobSettings) -> int:
    """Print the request as JSON, without credentials or network; report placeholders on standard error."""
    region = local_region(settings)
    account = settings.role_account or UNKNOWN_ACCOUNT
    role = settings.role or UNKNOWN_ROLE
    role_arn = role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"
    bucket = settings.bucket or default_bucket_name(region or UNKNOWN_REGION, account)
    parsed = read_config(argv, settings, bucket)
    config = parsed.config
    channels = channel_uris(config, settings, bucket)
    samples = count_local(config)
    name = unique_name(settings.base_job_name, datetime.now().strftime("%Y%m%d%H%M%S"))
    context = JobContext(image_of(settings, region or UNKNOWN_REGION), role_arn, bucket, name)
    sent = hyperparameters(parsed, samples)
    if region is None:
        print(f"dry run: no region is set; {UNKNOWN_REGION} is a placeholder; give --region.", file=sys.stderr)
    if not role_arn.startswith("arn:aws") or UNKNOWN_ACCOUNT in role_arn:
        print(f"dry run: {role_arn} is a placeholder for the role; give --role with its ARN.", file=sys.stderr)
    if UNKNOWN_ACCOUNT in bucket:
        print(f"dry run: {bucket} is a placeholder for the account's default bucket; give --bucket.", file=sys.stderr)
    if "num_training_samples" not in sent and channels:
        print(f"dry run: num_training_samples will be counted in {channels['train']}.", file=sys.stderr)
    if channels and "label_map" not in channels:
        print(f"dry run: a label_map channel is added if S3 has one next to {channels['train']}.", file=sys.stderr)
    print(json.dumps(build_request(sent, channels, settings, context), indent=2, ensure_ascii=False))
    return 0


def prepare(session: Any, argv: Sequence[str], settings: JobSettings) -> dict[str, Any]:
    """Return the request for a session's account: find role and bucket, upload local data, count the images."""
    image = image_of(settings, session.region_name)
    role_arn, bucket = find_role(session, settings), find_bucket(session, settings)
    parsed = read_config(argv, settings, bucket)
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
    context = JobContext(image, role_arn, bucket, unique_name(settings.base_job_name, "0" * 14))
    return build_request(hyperparameters(parsed, samples), channels, settings, context)


def add_label_map(s3: Any, config: Config, channels: dict[str, str]) -> None:
    """Add the label_map channel next to the other channels on S3 if it exists and none was given."""
    if "label_map" in channels or config.data is None or not is_s3(config.data):
        return
    uri = f"{s3_folder(config.data)}label_map/"
    bucket, prefix = parse_uri(uri)
    with aws_errors(f"listing {uri}"):
        if s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"):
            channels["label_map"] = uri
            print(f"label_map: {uri}")


def submit(session: Any, request: Mapping[str, Any], settings: JobSettings) -> str:
    """Create the job through ModelTrainer, which uploads the source and names the job; return the job's name."""
    from sagemaker_entry.training.job_source import stage_source

    with tempfile.TemporaryDirectory(prefix="pspnet-source-") as folder, aws_errors("submitting the job", settings):
        stage_source(Path(folder), image_python38(request["AlgorithmSpecification"]["TrainingImage"]))
        silence_sdk()
        # The SDK checks for far more permissions than a job without a VPC needs, and refuses a role with least
        # privilege. SageMaker itself reports a role that it cannot assume.
        os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
        trainer = make_trainer(session, request, settings, Path(folder))
        trainer.train(wait=False, logs=False)
        name: str = trainer._latest_training_job.training_job_name
    return name


def silence_sdk() -> None:
    """Silence the SDK's log, which repeats this command's output at length; its errors are exceptions."""
    import sagemaker.train  # noqa: F401  (creates its loggers and sets their levels)

    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "sagemaker":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def make_trainer(session: Any, request: Mapping[str, Any], settings: JobSettings, source: Path) -> Any:
    """Return the ModelTrainer whose CreateTrainingJob request equals the given one, except the date in the name."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    bucket, _ = parse_uri(_channel_uri(request, "code"))

    class Trainer(ModelTrainer):  # type: ignore[misc]
        """ModelTrainer with the request's staging bucket (without IAM's simulation) and container arguments."""

        def _resolve_staging_bucket(self) -> tuple[str, None]:
            return bucket, None

        def _create_training_job_args(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            job: dict[str, Any] = super()._create_training_job_args(*arguments, **options)
            job["algorithm_specification"].container_arguments = list(ENTRYPOINT_ARGUMENTS)
            return job

    algorithm, machines = request["AlgorithmSpecification"], request["ResourceConfig"]
    checkpoints = None
    if settings.spot or settings.checkpoint_s3_uri:
        location = {"s3_uri": settings.checkpoint_s3_uri} if settings.checkpoint_s3_uri else {}
        checkpoints = configs.CheckpointConfig(local_path=CHECKPOINT_FOLDER, **location)
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
    """Return the user's SDK defaults, with the SDK's telemetry off unless they enable it."""
    from sagemaker.core.config.config import load_sagemaker_config

    config: dict[str, Any] = load_sagemaker_config() or {}
    config.setdefault("SchemaVersion", "1.0")
    kit = config.setdefault("SageMaker", {}).setdefault("PythonSDK", {}).setdefault("Modules", {})
    kit.setdefault("TelemetryOptOut", True)
    return config


def console_address(region: str, name: str) -> str:
    """Return the job's page in the AWS console."""
    return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}"
