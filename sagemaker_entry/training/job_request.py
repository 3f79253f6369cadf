"""The CreateTrainingJob request, from Config and JobSettings. Pure: no AWS package, no network, no clock."""

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
from sagemaker_entry.training.job_settings import MOST_METRICS, JobSettings
from sagemaker_entry.training.metric_definitions import METRIC_DEFINITIONS

COMMAND = "exec $SM_PYTHON_CMD -m pspnet.training.launch"
"""How training is started: in place of the SDK's shell, so that SageMaker's SIGTERM reaches it, which the SDK's own
drivers would not pass on. The module finds out in the container whether that is one process or torchrun."""
REQUIREMENTS = "requirements.txt"
CHECKPOINT_FOLDER = "/opt/ml/checkpoints"
MOST_HYPERPARAMETERS, LONGEST_VALUE = 100, 2500

_DRIVERS = "/opt/ml/input/data/sm_drivers/sm_train.sh"
ENTRYPOINT = ["/bin/bash"]
ENTRYPOINT_ARGUMENTS = ["-c", f"chmod +x {_DRIVERS} && exec {_DRIVERS}"]
"""The SDK's own, but for the `exec`: without it, bash 4.3 and older keep the container's first process for themselves,
and with it SageMaker's SIGTERM."""
_NOT_SENT = ("data", *CHANNELS, *OUTPUT_FOLDERS)
"""Folders: in a job, the channels and SageMaker's own directories give them."""


@dataclass(frozen=True)
class Place:
    """What only the account, the region and the moment decide."""

    image_uri: str
    role_arn: str
    bucket: str
    job_name: str


def hyperparameters(arguments: Arguments, num_training_samples: int | None = None) -> dict[str, str]:
    """What the job is told: the settings that a flag or the config file gave, as texts, in the order of Config.

    `num_training_samples` is added where it was not set. Raises ConfigError for more than SageMaker carries.
    """
    config = arguments.config
    given = [key for key in settings_of(Config) if key in arguments.sources and key not in _NOT_SENT]
    # A name that only follows from the config file's was not set by anybody.
    given = [key for key in given if key != "name" or arguments.sources[key] != str(arguments.config_file)]
    sent = {key: _text(getattr(config, key)) for key in given}
    if config.synthetic:
        sent["data"] = str(config.data)
    elif num_training_samples is not None:
        sent.setdefault("num_training_samples", str(num_training_samples))
    problems = [
        Problem(key, f"is {len(value):,} characters long", f"SageMaker carries at most {LONGEST_VALUE:,}; shorten it")
        for key, value in sent.items()
        if len(value) > LONGEST_VALUE
    ]
    if len(sent) > MOST_HYPERPARAMETERS:
        fix = f"SageMaker carries at most {MOST_HYPERPARAMETERS}; leave out those that keep their default"
        problems.append(Problem("hyperparameters", f"found {len(sent)}", fix))
    if problems:
        raise InvalidConfigError(problems)
    return sent


def _text(value: object) -> str:
    """A value as train.py reads it back: True, 0.0001, "10, 20"; a known set of class names by its name."""
    if not isinstance(value, tuple):
        return str(value)
    for name, names in NAMED_CLASS_SETS.items():
        if value == names:
            return name
    texts = [str(item) for item in value]
    plain = all(text == text.strip(" '\"") and "," not in text for text in texts)
    return ", ".join(texts) if plain else json.dumps(texts, ensure_ascii=False)


def channel_uris(config: Config, settings: JobSettings, bucket: str) -> dict[str, str]:
    """S3 address of every channel of the job. A local folder stands for the place that it is uploaded to."""
    if config.synthetic:
        return {}
    given = {key: getattr(config, key) for key in CHANNELS if getattr(config, key) is not None}
    return {key: s3_folder(uri) if is_s3(uri) else upload_uri(settings, bucket, key) for key, uri in given.items()}


def local_channels(config: Config) -> dict[str, Path]:
    """The channels that are folders here; raises ConfigError that names those that do not exist."""
    if config.synthetic:
        return {}
    given = {key: getattr(config, key) for key in CHANNELS}
    folders = {key: Path(value) for key, value in given.items() if value is not None and not is_s3(value)}
    problems = [
        Problem(key, f"there is no folder {str(folder)!r}", "give a folder that exists, or s3://BUCKET/FOLDER")
        for key, folder in folders.items()
        if not folder.is_dir()
    ]
    if problems:
        raise InvalidConfigError(problems)
    return folders


def is_s3(address: str) -> bool:
    """Whether an address is one of S3."""
    return address.startswith("s3://")


def s3_folder(uri: str) -> str:
    """The address as a folder's. SageMaker takes every key that begins with it: without the slash, `train` would
    bring in `train_annotation`. An archive is a single object and stays as it is."""
    return uri if uri.endswith(("/", ".tar.gz")) else f"{uri}/"


def upload_uri(settings: JobSettings, bucket: str, channel: str) -> str:
    """Where `upload` puts a channel."""
    return f"s3://{bucket}/{settings.prefix}/{channel}/"


def metric_definitions(settings: JobSettings) -> list[dict[str, str]]:
    """The metrics of the log, the user's last and over ours; raises ConfigError for more than SageMaker takes."""
    metrics = {**dict(METRIC_DEFINITIONS), **dict(settings.metrics)}
    if len(metrics) > MOST_METRICS:
        raise InvalidConfigError([Problem("metric", f"found {len(metrics)} with ours", f"at most {MOST_METRICS}")])
    return [{"Name": name, "Regex": regex} for name, regex in metrics.items()]


def build_request(
    sent: Mapping[str, str], channels: Mapping[str, str], settings: JobSettings, place: Place
) -> dict[str, Any]:
    """The CreateTrainingJob request as the SDK's ModelTrainer sends it for these settings."""
    output = settings.output_path or f"s3://{place.bucket}/{settings.prefix}/output"
    inputs = f"s3://{place.bucket}/{settings.prefix}/{place.job_name}/input"
    channel_list = [_channel(name, uri, settings.input_mode, settings.distribution) for name, uri in channels.items()]
    channel_list += [_channel(name, f"{inputs}/{name}", "File", "FullyReplicated") for name in ("code", "sm_drivers")]
    request: dict[str, Any] = {
        "TrainingJobName": place.job_name,
        "AlgorithmSpecification": {
            "TrainingImage": place.image_uri,
            "TrainingInputMode": settings.input_mode,
            "ContainerEntrypoint": list(ENTRYPOINT),
            "ContainerArguments": list(ENTRYPOINT_ARGUMENTS),
            "MetricDefinitions": metric_definitions(settings),
        },
        "RoleArn": place.role_arn,
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
    checkpoints = checkpoint_uri(settings, place)
    if checkpoints is not None:
        request["CheckpointConfig"] = {"S3Uri": checkpoints, "LocalPath": CHECKPOINT_FOLDER}
    if settings.tags:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in settings.tags]
    return request


def checkpoint_uri(settings: JobSettings, place: Place) -> str | None:
    """Where checkpoints are kept: the given place, or for spot one of the job's own; None keeps none in S3."""
    if settings.checkpoint_s3_uri is not None or not settings.spot:
        return settings.checkpoint_s3_uri
    return f"s3://{place.bucket}/{settings.base_job_name}/{place.job_name}/checkpoints"


def _channel(name: str, uri: str, input_mode: str, distribution: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": distribution}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": input_mode}


def unique_name(base: str, stamp: str) -> str:
    """A job name from the base name and a date such as 20260131235959, as the SDK forms it."""
    return f"{base.replace('_', '-')}-{stamp}"[:63]


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    return bucket, key


def default_bucket_name(region: str, account: str) -> str:
    """The bucket that SageMaker's tools use where none is named."""
    return f"sagemaker-{region}-{account}"


def data_environment(settings: JobSettings, bucket: str) -> dict[str, str]:
    """What stands for the channels that were not given: the folder that `upload` writes."""
    return {"SM_CHANNEL_DATA": f"s3://{os.path.join(bucket, settings.prefix)}"}
