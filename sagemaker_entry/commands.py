"""SageMaker commands for training and hosting. AWS's packages are imported lazily."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagemaker_entry import hosting_commands
from sagemaker_entry.aws.account_settings import add_account_arguments, add_flag
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.pipeline import lambda_package
from sagemaker_entry.training import rehearse
from sagemaker_entry.training.job_settings import add_job_arguments

_TRAIN_TEXT = """Train as a SageMaker job. In addition to the arguments below, every setting of train.py is a flag:
--config FILE, --epochs 20, --data s3://bucket/prefix, --train s3://bucket/images, --label_map, --model ...
(`pspnet train --help` lists them). Channels default to those that `upload` wrote. Settings are checked locally before
anything is sent."""

TAKES_SETTINGS = ("train", "rehearse")
"""Commands that take the settings of train.py in addition to their own arguments."""


def build_parser(program: str = "python -m sagemaker_entry") -> argparse.ArgumentParser:
    """Build the parser of all commands; each sets `run`, (arguments) -> exit code."""
    parser = argparse.ArgumentParser(prog=program, description="PSPNet on Amazon SageMaker.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_upload(subparsers)
    train = subparsers.add_parser("train", help="train as a SageMaker job", description=_TRAIN_TEXT, allow_abbrev=False)
    add_job_arguments(train)
    train.set_defaults(run=run_train)
    rehearse.register(subparsers)
    hosting_commands.register(subparsers)
    lambda_package.register(subparsers)
    return parser


def _add_upload(subparsers: Any) -> None:
    upload = subparsers.add_parser("upload", help="check a data set and upload its channels to S3", allow_abbrev=False)
    upload.add_argument("data", type=Path, metavar="DATA_DIR", help="folder that holds train, train_annotation, ...")
    add_account_arguments(upload)
    add_flag(upload, "num_classes", type=int, metavar="N", help="classes of the model (default: found in the masks)")
    add_flag(
        upload, "workers", type=int, default=8, metavar="N", help="files read and uploaded concurrently (%(default)s)"
    )
    add_flag(upload, "skip_check", action="store_true", help="upload without reading every file first")
    upload.set_defaults(run=run_upload)


def dispatch(argv: Sequence[str], program: str = "python -m sagemaker_entry") -> int:
    """Run one command and return its exit code. Unknown arguments are passed to it as `rest`."""
    parser = build_parser(program)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command not in TAKES_SETTINGS and rest:
        parser.error(f"{arguments.command}: unrecognized arguments: {' '.join(rest)}")
    arguments.rest = [*getattr(arguments, "rest", []), *rest]
    code: int = arguments.run(arguments)
    return code


def run_upload(arguments: argparse.Namespace) -> int:
    """Check the data set, upload its channels, print the next command."""
    require_packages("boto3")
    from sagemaker_entry.training.upload import upload_command

    return upload_command(arguments)


def run_train(arguments: argparse.Namespace) -> int:
    """Check, describe and submit a training job."""
    require_packages("sagemaker", "boto3")
    from sagemaker_entry.training.submit import train_command

    return train_command(arguments)
