"""CreateTrainingJob request from Config and JobSettings. Pure: no AWS package, no network, no clock."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.config.folders import CHANNELS, OUTPUT_FOLDERS
from pspnet.config.parsing import Arguments
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.schema import Config
from pspnet.config.settings import settings_of
from sagemaker_entry.aws.account_settings import AccountSettings
from sagemaker_entry.aws.s3_objects import is_s3, s3_folder
from sagemaker_entry.training.job_settings import MOST_METRICS, JobSettings
from sagemaker_entry.training.metric_definitions import METRIC_DEFINITIONS

COMMAND = "exec $SM_PYTHON_CMD -m pspnet.training.launch"
"""Start command. `exec` replaces the SDK's shell, so that SageMaker's SIGTERM reaches training; the SDK's own drivers
do not forward it. The module chooses between one process and torchrun in the container."""
REQUIREMENTS = "requirements.txt"
CHECKPOINT_FOLDER = "/opt/ml/checkpoints"
MOST_HYPERPARAMETERS, LONGEST_VALUE = 100, 2500

_DRIVERS = "/opt/ml/input/data/sm_drivers/sm_train.sh"
ENTRYPOINT = ["/bin/bash"]
ENTRYPOINT_ARGUMENTS = ["-c", f"chmod +x {_DRIVERS} && exec {_DRIVERS}"]
"""The SDK's own plus `exec`: without it, bash 4.3 and older stay PID 1 of the container and receive the SIGTERM."""
_NOT_SENT = ("data", *CHANNELS, *OUTPUT_FOLDERS)
"""Folder settings: in a job, the channels and SageMaker's own directories replace them."""


@dataclass(frozen=True)
class JobContext:
    """Values that depend on the account, the region and the time."""

    image_uri: str
    role_arn: str
    bucket: str
    job_name: str


def hyperparameters(arguments: Arguments, num_training_samples: int | None = None) -> dict[str, str]:
    """Return the job's hyperparameters: the settings from flags and the config file as texts, in the order of Config.

    `num_training_samples` is added if unset. Raises ConfigError above SageMaker's limits.
    """
    config = arguments.config
    given = [key for key in settings_of(Config) if key in arguments.sources and key not in _NOT_SENT]
    # A name derived from the config file's name was not set explicitly.
    given = [key for key in given if key != "name" or arguments.sources[key] != str(arguments.config_file)]
    sent = {key: _text(getattr(config, key)) for key in given}
    if config.synthetic:
        sent["data"] = str(config.data)
    elif num_training_samples is not None:
        sent.setdefault("num_training_samples", str(num_training_samples))
    problems = [
        Problem(key, f"is {len(value):,} characters long", f"SageMaker allows at most {LONGEST_VALUE:,}; shorten it")
        for key, value in sent.items()
        if len(value) > LONGEST_VALUE
    ]
    if len(sent) > MOST_HYPERPARAMETERS:
        fix = f"SageMaker allows at most {MOST_HYPERPARAMETERS}; leave out those with default values"
        problems.append(Problem("hyperparameters", f"found {len(sent)}", fix))
    if problems:
        raise InvalidConfigError(problems)
    return sent


def _text(value: object) -> str:
    """Format a value for train.py's parser: True, 0.0001, "10, 20"; a known class set as its name."""
    if not isinstance(value, tuple):
        return str(value)
    for name, names in NAMED_CLASS_SETS.items():
        if value == names:
            return name
    texts = [str(item) for item in value]
    plain = all(text == text.strip(" '\"") and "," not in text for text in texts)
    return ", ".join(texts) if plain else json.dumps(texts, ensure_ascii=False)


def channel_uris(config: Config, settings: JobSettings, bucket: str) -> dict[str, str]:
    """Return the S3 address of every channel of the job; for a local folder, that of its upload."""
    if config.synthetic:
        return {}
    given = {key: getattr(config, key) for key in CHANNELS if getattr(config, key) is not None}
    return {key: s3_folder(uri) if is_s3(uri) else upload_uri(settings, bucket, key) for key, uri in given.items()}


def local_channels(config: Config) -> dict[str, Path]:
    """Return the local channel folders. Raises ConfigError that names the missing ones."""
    if config.synthetic:
        return {}
    given = {key: getattr(config, key) for key in CHANNELS}
    folders = {key: Path(value) for key, value in given.items() if value is not None and not is_s3(value)}
    problems = [
        Problem(key, f"no such folder {str(folder)!r}", "give an existing folder, or s3://BUCKET/FOLDER")
        for key, folder in folders.items()
        if not folder.is_dir()
    ]
    if problems:
        raise InvalidConfigError(problems)
    return folders


def upload_uri(settings: AccountSettings, bucket: str, channel: str) -> str:
    """Return the S3 address of a channel's upload."""
    return f"s3://{bucket}/{settings.prefix}/{channel}/"


def metric_definitions(settings: JobSettings) -> list[dict[str, str]]:
    """Return the log's metrics; the user's override ours. Raises ConfigError above SageMaker's limit."""
    metrics = {**dict(METRIC_DEFINITIONS), **dict(settings.metrics)}
    if len(metrics) > MOST_METRICS:
        raise InvalidConfigError([Problem("metric", f"found {len(metrics)} with ours", f"at most {MOST_METRICS}")])
    return [{"Name": name, "Regex": regex} for name, regex in metrics.items()]


def build_request(
    sent: Mapping[str, str], channels: Mapping[str, str], settings: JobSettings, context: JobContext
) -> dict[str, Any]:
    """Return the CreateTrainingJob request that the SDK's ModelTrainer sends for these settings."""
    output = settings.output_path or f"s3://{context.bucket}/{settings.prefix}/output"
    inputs = f"s3://{context.bucket}/{settings.prefix}/{context.job_name}/input"
    channel_list = [_channel(name, uri, settings.input_mode, settings.distribution) for name, uri in channels.items()]
    channel_list += [_channel(name, f"{inputs}/{name}", "File", "FullyReplicated") for name in ("code", "sm_drivers")]
    request: dict[str, Any] = {
        "TrainingJobName": context.job_name,
        "AlgorithmSpecification": {
            "TrainingImage": context.image_uri,
            "TrainingInputMode": settings.input_mode,
            "ContainerEntrypoint": list(ENTRYPOINT),
            "ContainerArguments": list(ENTRYPOINT_ARGUMENTS),
            "MetricDefinitions": metric_definitions(settings),
        },
        "RoleArn": context.role_arn,
        "HyperParameters": dict(sent),
        "InputDataConfig": channel_list,
        "OutputDataConfig": {"S3OutputPath": output, "CompressionType": "GZIP"},
        "ResourceConfig": {
            "InstanceType": settings.instance_type,
            "InstanceCount": settings.instance_count,
            "VolumeSizeInGB": settings.volume_size,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": settings.max_run},
        "EnableManagedSpotTraining": settings.spot,
    }
    if settings.wait_limit is not None:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = settings.wait_limit
    checkpoints = checkpoint_uri(settings, context)
    if checkpoints is not None:
        request["CheckpointConfig"] = {"S3Uri": checkpoints, "LocalPath": CHECKPOINT_FOLDER}
    if settings.tags:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in settings.tags]
    return request


def checkpoint_uri(settings: JobSettings, context: JobContext) -> str | None:
    """Return the S3 address of the checkpoints: the given one, or a job-specific one for spot; None for neither."""
    if settings.checkpoint_s3_uri is not None or not settings.spot:
        return settings.checkpoint_s3_uri
    return f"s3://{context.bucket}/{settings.base_job_name}/{context.job_name}/checkpoints"


def _channel(name: str, uri: str, input_mode: str, distribution: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": distribution}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": input_mode}


def data_environment(bucket: str, prefix: str) -> dict[str, str]:
    """Return the environment that sets the default of missing channels: the folder that `upload` writes."""
    return {"SM_CHANNEL_DATA": f"s3://{os.path.join(bucket, prefix)}"}
