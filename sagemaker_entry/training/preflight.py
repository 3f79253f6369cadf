"""Checks and warnings of `train` and `rehearse` before anything is sent or started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from pspnet.config.rules import config_warnings
from pspnet.config.schema import Config
from pspnet.data.channels import Channel, find_label_map, list_files
from pspnet.data.doctor.examine import examine
from pspnet.data.doctor.findings import format_report
from pspnet.data.io.images import IMAGE_SUFFIXES
from pspnet.errors import DataError
from sagemaker_entry.aws.container_images import parse_instance_type
from sagemaker_entry.aws.s3_objects import is_s3
from sagemaker_entry.training.job_settings import JobSettings
from sagemaker_entry.training.training_images import P2_NOTE, check_image, check_known, check_pair


def check_machine(settings: JobSettings) -> None:
    """Raise ConfigError for an unknown instance type, or for an image or version that cannot run on it."""
    parse_instance_type(settings.instance_type)
    if find_spec("botocore") is not None:  # a rehearsal itself needs no AWS package
        check_known(settings.instance_type)
    check_pair(settings.instance_type, settings.pytorch_version)
    if settings.image_uri is not None:
        check_image(settings.instance_type, settings.image_uri)


def print_warnings(config: Config, settings: JobSettings) -> None:
    """Print warnings about valid but probably unintended settings."""
    warnings = config_warnings(config)
    if parse_instance_type(settings.instance_type)[0] == "p2":
        warnings.append(P2_NOTE)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def check_data(folders: Mapping[str, Path], num_classes: int | None = None, workers: int = 8) -> bool:
    """Print the doctor's report on the channels; return True if they are fit for training."""
    label_map = folders.get("label_map")
    channels = [
        Channel(name, folders[name], folders[f"{name}_annotation"], find_label_map(label_map, name))
        for name in ("train", "validation")
        if name in folders and f"{name}_annotation" in folders
    ]
    report = examine(channels, num_classes=num_classes, workers=min(workers, os.cpu_count() or 1))
    print(format_report(report))
    return report.ok


def require_fit_data(folders: Mapping[str, Path], config: Config, settings: JobSettings) -> None:
    """Print the doctor's report on local channels unless `skip_check` is set. Raises DataError if it has an error."""
    if folders and not settings.skip_check and not check_data(folders, config.num_classes):
        raise DataError(
            "the data are not fit for training; nothing was sent or started. Fix the reported errors, or give "
            "--skip_check."
        )


def count_local(config: Config) -> int | None:
    """Count the training images of a local channel; None if it is on S3 or synthetic."""
    if config.synthetic or config.train is None or is_s3(config.train):
        return None
    return len(list_files(Path(config.train), IMAGE_SUFFIXES, "train")) or None
