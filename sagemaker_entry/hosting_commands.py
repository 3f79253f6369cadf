"""The commands that host a model on SageMaker: deploy, predict, transform, status, delete."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sagemaker_entry.aws.account_settings import DEFAULT_PREFIX, add_flag
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.hosting.endpoint_settings import add_deploy_arguments, add_model_arguments
from sagemaker_entry.hosting.status import NEWEST_JOBS

_DEPLOY_TEXT = """Host a model. MODEL is a model directory or model.tar.gz on this disk, s3://.../model.tar.gz, or the
name of a training job that completed. It is looked into first; one without code/ is completed and uploaded. An
endpoint on machines is billed until it is deleted."""


def register(subparsers: Any) -> None:
    """Add the commands to the parser of `python -m sagemaker_entry`."""
    for name, text, add_arguments, packages in (
        ("deploy", "create an endpoint of a model", _add_deploy_arguments, ("boto3",)),
        ("predict", "write the masks of images that an endpoint gives", _add_predict_arguments, ()),
        ("transform", "write the masks of images on S3, without an endpoint", _add_transform_arguments, ("boto3",)),
        ("status", "show endpoints and jobs, and what is billed", _add_status_arguments, ("boto3",)),
        ("delete", "delete an endpoint with all that belongs to it", _add_delete_arguments, ("boto3",)),
    ):
        parser = subparsers.add_parser(
            name, help=text, description=_DEPLOY_TEXT if name == "deploy" else None, allow_abbrev=False
        )
        add_arguments(parser)
        parser.set_defaults(run=_runner(name, packages))


def _runner(name: str, packages: tuple[str, ...]) -> Callable[[argparse.Namespace], int]:
    """Imports a command's module when the command is run."""

    def run(arguments: argparse.Namespace) -> int:
        require_packages(*packages)
        command = getattr(import_module(f"sagemaker_entry.hosting.{name}"), f"{name}_command")
        code: int = command(arguments)
        return code

    return run


def _add_deploy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model directory, archive, s3:// address or training job")
    add_deploy_arguments(parser)


def _add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", metavar="ENDPOINT", help="name of an endpoint, or http(s)://HOST:PORT")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders or patterns")
    add_flag(parser, "output", type=Path, required=True, metavar="DIR", help="gets <name>.png of every image")
    add_flag(parser, "overlay", action="store_true", help="also write <name>_overlay.jpg")
    add_flag(parser, "workers", type=int, default=2, metavar="N", help="images sent at a time (%(default)s)")
    add_flag(parser, "retries", type=int, default=6, metavar="N", help="further tries at a busy endpoint (%(default)s)")
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")


def _add_transform_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a SageMaker model, or what `deploy` takes")
    parser.add_argument(
        "images", metavar="S3_IMAGES", help="s3://BUCKET/FOLDER/ that holds the images and nothing else"
    )
    add_flag(parser, "output", required=True, metavar="S3_MASKS", help="s3://BUCKET/FOLDER/ that gets the masks")
    add_flag(parser, "fetch", metavar="DIR", help="afterwards, write the masks to this folder as <name>.png")
    add_flag(parser, "accept", default="image/png; palette=true", help="form of the answers (%(default)s)")
    add_flag(parser, "concurrent", type=int, default=2, metavar="N", help="images at a time per machine (%(default)s)")
    # SageMaker offers no ml.t2 machines for batch transforms.
    add_model_arguments(parser, "ml.m5.xlarge", "job and model")
    wait = parser.add_mutually_exclusive_group()
    add_flag(wait, "wait", dest="wait", action="store_true", default=True, help="wait until it has ended (default)")
    add_flag(wait, "no_wait", dest="wait", action="store_false", help="return when it is submitted")
    add_flag(parser, "dry_run", action="store_true", help="print the requests as JSON; no credentials, nothing is sent")


def _add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one endpoint, batch transform or training job")
    add_flag(
        parser,
        "base_name",
        default=DEFAULT_PREFIX,
        metavar="NAME",
        help=f"jobs whose name begins with it, the newest {NEWEST_JOBS} (%(default)s)",
    )
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")


def _add_delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", nargs="?", metavar="ENDPOINT", help="name of the endpoint")
    add_flag(parser, "all", action="store_true", help="all endpoints, configurations and models of this project")
    add_flag(parser, "yes", action="store_true", help="do not ask")
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")
