"""Hosting commands: deploy, predict, transform, status, delete."""

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

_DEPLOY_TEXT = """Host a model. MODEL is a local model directory or model.tar.gz, s3://.../model.tar.gz, or the name of
a completed training job. It is checked first; if code/ is missing, it is added and the model uploaded. An endpoint on
instances is billed until it is deleted."""


def register(subparsers: Any) -> None:
    """Add the commands to the parser of `python -m sagemaker_entry`."""
    for name, text, add_arguments, packages in (
        ("deploy", "create an endpoint of a model", _add_deploy_arguments, ("boto3",)),
        ("predict", "write the masks of images from an endpoint", _add_predict_arguments, ()),
        ("transform", "write the masks of images on S3, without an endpoint", _add_transform_arguments, ("boto3",)),
        ("status", "show endpoints and jobs, and what is billed", _add_status_arguments, ("boto3",)),
        ("delete", "delete an endpoint and its resources", _add_delete_arguments, ("boto3",)),
    ):
        parser = subparsers.add_parser(
            name, help=text, description=_DEPLOY_TEXT if name == "deploy" else None, allow_abbrev=False
        )
        add_arguments(parser)
        parser.set_defaults(run=_runner(name, packages))


def _runner(name: str, packages: tuple[str, ...]) -> Callable[[argparse.Namespace], int]:
    """Return a function that imports a command's module and runs it."""

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
    add_flag(parser, "output", type=Path, required=True, metavar="DIR", help="folder for <name>.png of every image")
    add_flag(parser, "overlay", action="store_true", help="also write <name>_overlay.jpg")
    add_flag(parser, "workers", type=int, default=2, metavar="N", help="concurrent requests (%(default)s)")
    add_flag(parser, "retries", type=int, default=6, metavar="N", help="retries if the endpoint is busy (%(default)s)")
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")


def _add_transform_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a SageMaker model, or what `deploy` takes")
    parser.add_argument("images", metavar="S3_IMAGES", help="s3://BUCKET/FOLDER/ that holds only images")
    add_flag(parser, "output", required=True, metavar="S3_MASKS", help="s3://BUCKET/FOLDER/ for the masks")
    add_flag(parser, "fetch", metavar="DIR", help="afterwards, write the masks to this folder as <name>.png")
    add_flag(parser, "accept", default="image/png; palette=true", help="format of the answers (%(default)s)")
    add_flag(parser, "concurrent", type=int, default=2, metavar="N", help="concurrent images per machine (%(default)s)")
    # SageMaker offers no ml.t2 instances for batch transforms.
    add_model_arguments(parser, "ml.m5.xlarge", "job and model")
    wait = parser.add_mutually_exclusive_group()
    add_flag(wait, "wait", dest="wait", action="store_true", default=True, help="wait until it has ended (default)")
    add_flag(wait, "no_wait", dest="wait", action="store_false", help="return after submitting it")
    add_flag(parser, "dry_run", action="store_true", help="print the requests as JSON without sending them")


def _add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one endpoint, batch transform or training job")
    add_flag(
        parser,
        "base_name",
        default=DEFAULT_PREFIX,
        metavar="NAME",
        help=f"list the newest {NEWEST_JOBS} jobs whose name begins with it (%(default)s)",
    )
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")


def _add_delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", nargs="?", metavar="ENDPOINT", help="name of the endpoint")
    add_flag(parser, "all", action="store_true", help="all endpoints, configurations and models made by these commands")
    add_flag(parser, "yes", action="store_true", help="do not ask for confirmation")
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")
