"""CreateTrainingJob request, field by field; needs no AWS package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pspnet.config.command_line import parse_settings
from pspnet.config.parsing import load_config, parse_arguments
from pspnet.errors import ConfigError
from sagemaker_entry.aws.account_settings import unique_name
from sagemaker_entry.training.job_request import (
    JobContext,
    build_request,
    channel_uris,
    data_environment,
    hyperparameters,
    local_channels,
    metric_definitions,
)
from sagemaker_entry.training.job_settings import JobSettings
from sagemaker_entry.training.metric_definitions import METRIC_DEFINITIONS

ROOT = Path(__file__).resolve().parents[3]
VOC = str(ROOT / "configs" / "voc2012.yaml")
CONTEXT = JobContext("image:1", "arn:aws:iam::123456789012:role/R", "bucket", "xporter-segmentation-20260131235959")

# The users' job (the built-in algorithm's names and values), and the class names.
VOC_HYPERPARAMETERS = {
    "backbone": "resnet-50",
    "algorithm": "psp",
    "use_pretrained_model": "True",
    "crop_size": "240",
    "num_classes": "21",
    "epochs": "10",
    "learning_rate": "0.0001",
    "optimizer": "rmsprop",
    "lr_scheduler": "poly",
    "mini_batch_size": "16",
    "validation_mini_batch_size": "16",
    "early_stopping": "True",
    "early_stopping_patience": "2",
    "early_stopping_min_epochs": "10",
    "class_names": "voc",
}


def settings_of(*argv: str) -> JobSettings:
    return parse_settings(JobSettings, argv, "train", "")


def request_of(*argv: str, rest: tuple[str, ...] = ("--config", VOC), samples: int | None = None) -> dict[str, Any]:
    settings = settings_of(*argv)
    parsed = parse_arguments(rest, data_environment("bucket", settings.prefix))
    channels = channel_uris(parsed.config, settings, "bucket")
    return build_request(hyperparameters(parsed, samples), channels, settings, CONTEXT)


def channel(name: str, uri: str, mode: str = "File", distribution: str = "FullyReplicated") -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": distribution}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def test_the_users_job_field_by_field() -> None:
    request = request_of(samples=1464)
    job = "s3://bucket/xporter-segmentation/xporter-segmentation-20260131235959/input"
    algorithm = request.pop("AlgorithmSpecification")
    assert request == {
        "TrainingJobName": "xporter-segmentation-20260131235959",
        "RoleArn": "arn:aws:iam::123456789012:role/R",
        "HyperParameters": {**VOC_HYPERPARAMETERS, "num_training_samples": "1464"},
        "InputDataConfig": [
            channel("train", "s3://bucket/xporter-segmentation/train/"),
            channel("train_annotation", "s3://bucket/xporter-segmentation/train_annotation/"),
            channel("validation", "s3://bucket/xporter-segmentation/validation/"),
            channel("validation_annotation", "s3://bucket/xporter-segmentation/validation_annotation/"),
            channel("code", f"{job}/code"),
            channel("sm_drivers", f"{job}/sm_drivers"),
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/xporter-segmentation/output", "CompressionType": "GZIP"},
        "ResourceConfig": {"InstanceType": "ml.p2.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 360000},
        "EnableManagedSpotTraining": False,
    }
    assert algorithm["TrainingImage"] == "image:1"
    assert algorithm["TrainingInputMode"] == "File"
    assert algorithm["ContainerEntrypoint"] == ["/bin/bash"]
    assert algorithm["ContainerArguments"][1].endswith("&& exec /opt/ml/input/data/sm_drivers/sm_train.sh")
    assert [metric["Name"] for metric in algorithm["MetricDefinitions"]] == [name for name, _ in METRIC_DEFINITIONS]


def test_every_job_argument_sets_its_field() -> None:
    request = request_of(
        "--instance_type=ml.g4dn.12xlarge", "--instance-count=2", "--volume_size=80", "--max_run=3600",
        "--spot", "--max_wait=7200", "--checkpoint_s3_uri=s3://c/k", "--input_mode=FastFile",
        "--output_path=s3://out/here", "--tag=team=cars", "--tag=a=b=c", "--metric=mine=x=([0-9]+)",
    )  # fmt: skip
    assert request["ResourceConfig"] == {"InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 2, "VolumeSizeInGB": 80}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["EnableManagedSpotTraining"] is True
    assert request["CheckpointConfig"] == {"S3Uri": "s3://c/k", "LocalPath": "/opt/ml/checkpoints"}
    assert [one["InputMode"] for one in request["InputDataConfig"]] == ["FastFile"] * 4 + ["File"] * 2
    assert request["AlgorithmSpecification"]["TrainingInputMode"] == "FastFile"
    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://out/here"
    assert request["Tags"] == [{"Key": "team", "Value": "cars"}, {"Key": "a", "Value": "b=c"}]
    assert request["AlgorithmSpecification"]["MetricDefinitions"][-1] == {"Name": "mine", "Regex": "x=([0-9]+)"}


def test_spot_keeps_checkpoints_and_max_wait_defaults_to_max_run() -> None:
    request = request_of("--spot")
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 360000, "MaxWaitTimeInSeconds": 360000}
    place = "s3://bucket/xporter-segmentation/xporter-segmentation-20260131235959/checkpoints"
    assert request["CheckpointConfig"]["S3Uri"] == place
    assert "CheckpointConfig" not in request_of()


def test_sharding_requires_one_machine() -> None:
    request = request_of("--distribution", "ShardedByS3Key")
    kinds = [one["DataSource"]["S3DataSource"]["S3DataDistributionType"] for one in request["InputDataConfig"]]
    assert kinds == ["ShardedByS3Key"] * 4 + ["FullyReplicated"] * 2
    with pytest.raises(ConfigError, match="so each machine needs all"):
        settings_of("--distribution", "ShardedByS3Key", "--instance_count", "2")


def test_custom_channels_with_label_map_and_model() -> None:
    rest = (
        "--num_classes=3", "--data=s3://d/set/", "--validation=s3://v/images", "--label_map=s3://d/maps/",
        "--model=s3://m/old/output/model.tar.gz",
    )  # fmt: skip
    request = request_of(rest=rest)
    assert request["InputDataConfig"][:6] == [
        channel("train", "s3://d/set/train/"),
        channel("train_annotation", "s3://d/set/train_annotation/"),
        channel("validation", "s3://v/images/"),
        channel("validation_annotation", "s3://d/set/validation_annotation/"),
        channel("label_map", "s3://d/maps/"),
        channel("model", "s3://m/old/output/model.tar.gz"),
    ]
    assert request["HyperParameters"] == {"num_classes": "3"}


def test_local_folders_map_to_their_upload_address(tmp_path: Path) -> None:
    for name in ("train", "train_annotation", "validation", "validation_annotation", "label_map"):
        (tmp_path / name).mkdir()
    request = request_of("--prefix=cars", rest=("--num_classes=3", f"--data={tmp_path}"))
    uris = [one["DataSource"]["S3DataSource"]["S3Uri"] for one in request["InputDataConfig"]]
    assert uris[0] == "s3://bucket/cars/train/"
    assert uris[4] == "s3://bucket/cars/label_map/"
    with pytest.raises(ConfigError, match=r"train: no such folder '/none/train'"):
        local_channels(load_config(None, {"num_classes": 3, "data": "/none"}))


def test_the_synthetic_data_set_needs_no_channels() -> None:
    request = request_of(rest=("--data=shapes", "--num_classes=7"))
    assert request["HyperParameters"] == {"num_classes": "7", "data": "shapes"}
    assert [one["ChannelName"] for one in request["InputDataConfig"]] == ["code", "sm_drivers"]


def sent(*argv: str, samples: int | None = None) -> dict[str, str]:
    return hyperparameters(parse_arguments(["--data=s3://b/d", "--num_classes=3", *argv], {}), samples)


def test_only_given_settings_are_sent_as_texts() -> None:
    assert sent() == {"num_classes": "3"}
    assert sent("--learning_rate=1e-4", "--syncbn", "--crop_size=241", "--epochs=12", "--loss=ohem") == {
        "num_classes": "3",
        "crop_size": "248",
        "epochs": "12",
        "learning_rate": "0.0001",
        "syncbn": "True",
        "loss": "ohem",
    }
    assert sent("--lr_scheduler=step", "--lr_scheduler_step=[10, 20]")["lr_scheduler_step"] == "10, 20"
    assert sent("--name=mine")["name"] == "mine"
    assert "model_dir" not in sent("--model_dir=/somewhere", "--checkpoint_dir=/else")
    assert sent(samples=8)["num_training_samples"] == "8"
    assert sent("--num_training_samples=5", samples=8)["num_training_samples"] == "5"


@pytest.mark.parametrize(
    "argv",
    [
        ("--class_names=camvid", "--num_classes=11"),
        ("--class_names=sky,road,car",),
        ('--class_names=["sky, or so", "road", "car"]',),
        ("--lr_scheduler=step", "--lr_scheduler_step=10"),
        ("--class_weights=0.5, 1, 2", "--learning_rate=1e-5", "--workers=auto", "--early_stopping=False"),
    ],
)
def test_hyperparameters_parse_back_to_the_same_config(argv: tuple[str, ...]) -> None:
    base = ["--data=s3://b/d", "--num_classes=3", *argv]
    parsed = parse_arguments(base, {})
    texts = hyperparameters(parsed)
    flags = [part for key, value in sorted(texts.items()) for part in (f"--{key}", value)]
    assert parse_arguments([*flags, "--data", "s3://b/d"], {}).config == parsed.config
    # The SDK's driver decodes each text as JSON if possible, and encodes the value again.
    flags = []
    for key, value in texts.items():
        try:
            decoded = json.loads(value)
        except ValueError:
            decoded = value
        flags += [f"--{key}", decoded if isinstance(decoded, str) else json.dumps(decoded)]
    assert parse_arguments([*flags, "--data", "s3://b/d"], {}).config == parsed.config


def test_sagemakers_limits_are_checked_locally() -> None:
    names = ",".join(f"{'class':x<30}{number}" for number in range(200))
    with pytest.raises(ConfigError, match=r"class_names: is [\d,]+ characters long.*at most 2,500"):
        sent("--num_classes=200", f"--class_names={names}")
    with pytest.raises(ConfigError, match="metric: found 41"):
        metric_definitions(settings_of(*(f"--metric=m{number}=x" for number in range(36))))
    assert len(metric_definitions(settings_of(*(f"--metric=m{number}=x" for number in range(35))))) == 40


def test_all_problems_of_the_job_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(
            "--instance_count=0", "--max_run=0", "--input_mode=Pipe", "--distribution=Half", "--output_path=/x",
            "--base_job_name=my_job", "--max_wait=5", "--tag=x", "--role=arn:aws:iam::1:role/R",
        )  # fmt: skip
    text = str(caught.value)
    for key in (
        "instance_count",
        "max_run",
        "input_mode",
        "distribution",
        "output_path",
        "base_job_name",
        "max_wait",
        "tag",
        "role",
    ):
        assert f"\n  {key}: " in text, key
    with pytest.raises(ConfigError, match="max_wait: found 10, below max_run 20"):
        settings_of("--spot", "--max_run=20", "--max_wait=10")


def test_a_job_name_has_at_most_sagemakers_length() -> None:
    name = unique_name("a" * 48, "20260131235959")
    assert len(name) == 63
    assert name.endswith("-20260131235959")


# Lines as training prints them (pspnet/training/loop.py).
LINES = {
    "epoch=3 step=20/91 loss=0.6120 learning_rate=9.1e-05 images_per_second=11.90": {},
    "epoch=3 train:loss=0.4821 train:throughput=12.3012 learning_rate=8.123e-05": {
        "train:loss": 0.4821,
        "train:throughput": 12.3012,
        "learning_rate": 8.123e-05,
    },
    "epoch=3 train:loss=0.4821 train:throughput=12.3 learning_rate=1e-3": {
        "train:loss": 0.4821,
        "train:throughput": 12.3,
        "learning_rate": 1e-3,
    },
    "epoch=4 train:loss=0.4821 learning_rate=8.1e-05": {"train:loss": 0.4821, "learning_rate": 8.1e-05},
    "epoch=3 validation:mIOU=0.7123 validation:pixel_accuracy=0.9342": {
        "validation:mIOU": 0.7123,
        "validation:pixel_accuracy": 0.9342,
    },
}


@pytest.mark.parametrize("line", LINES)
def test_metric_patterns_match_the_training_log(line: str) -> None:
    found = {name: re.search(regex, line) for name, regex in METRIC_DEFINITIONS}
    assert {name: float(match.group(1)) for name, match in found.items() if match} == LINES[line]


def test_metrics_respect_sagemakers_limit() -> None:
    assert len(METRIC_DEFINITIONS) <= 40
    assert all(len(name) <= 255 and len(regex) <= 500 for name, regex in METRIC_DEFINITIONS)
