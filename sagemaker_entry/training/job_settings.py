"""The settings of a job that are no settings of the training: machine, limits, places, tags. Needs no AWS package."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pspnet.config.problems import InvalidConfigError, Problem

DEFAULT_PREFIX = "xporter-segmentation"
LONGEST_BASE_NAME = 48
"""A job name has at most 63 characters, of which the SDK's date takes 15."""
MOST_METRICS, MOST_TAGS = 40, 50

_BASE_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/[\w+=,.@/-]+", re.ASCII)


@dataclass(frozen=True)
class JobSettings:
    """How a job is run on SageMaker; the built-in algorithm's job of the first users is the default."""

    instance_type: str = "ml.p2.xlarge"
    instance_count: int = 1
    volume_size: int = 50
    max_run: int = 360000
    spot: bool = False
    max_wait: int | None = None
    checkpoint_s3_uri: str | None = None
    input_mode: str = "File"
    distribution: str = "FullyReplicated"
    output_path: str | None = None
    base_job_name: str = DEFAULT_PREFIX
    tags: tuple[tuple[str, str], ...] = ()
    metrics: tuple[tuple[str, str], ...] = ()
    image_uri: str | None = None
    pytorch_version: str | None = None
    role: str | None = None
    bucket: str | None = None
    prefix: str = DEFAULT_PREFIX
    region: str | None = None
    profile: str | None = None
    skip_check: bool = False
    wait: bool = True
    dry_run: bool = False

    @property
    def role_account(self) -> str | None:
        """The account number in the role's ARN, where an ARN was given."""
        match = _ROLE_ARN.fullmatch(self.role or "")
        return match.group(1) if match else None

    @property
    def wait_limit(self) -> int | None:
        """Seconds that a spot job may take with all its waiting; max_run where nothing was said. None without spot."""
        return (self.max_wait or self.max_run) if self.spot else None


def add_flag(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup, name: str, **options: Any) -> None:
    """A flag that is accepted with underscores and with hyphens."""
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **options)


def add_account_arguments(parser: argparse.ArgumentParser) -> None:
    """Where in AWS: bucket, prefix, region, profile."""
    add_flag(parser, "bucket", metavar="NAME", help="S3 bucket (SageMaker's default bucket of the account and region)")
    add_flag(parser, "prefix", default=DEFAULT_PREFIX, metavar="PREFIX", help="folder in the bucket (%(default)s)")
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """All arguments of a job; `train` and `rehearse` take the same ones."""
    default = JobSettings()
    add_flag(parser, "role", metavar="ARN", help="IAM role that SageMaker takes on (the caller's own in a notebook)")
    for name, kind, text in (
        ("instance_type", str, "machine"),
        ("instance_count", int, "machines"),
        ("volume_size", int, "disk of each machine in GB"),
        ("max_run", int, "longest training in seconds"),
    ):
        add_flag(parser, name, type=kind, default=getattr(default, name), help=f"{text} (%(default)s)")
    add_flag(parser, "spot", action="store_true", help="spot machines: cheaper, may be taken away; keeps checkpoints")
    add_flag(parser, "max_wait", type=int, metavar="S", help="spot: longest time in all, waiting included (max_run)")
    add_flag(parser, "checkpoint_s3_uri", metavar="S3", help="where checkpoints are kept (spot: beside the job's code)")
    add_flag(parser, "input_mode", default="File", help="File copies the channels first, FastFile streams them")
    add_flag(parser, "distribution", default="FullyReplicated", help="FullyReplicated or ShardedByS3Key")
    add_flag(parser, "output_path", metavar="S3", help="where the artifact goes (s3://BUCKET/PREFIX/output)")
    add_flag(parser, "base_job_name", default=default.base_job_name, metavar="NAME", help="job name (%(default)s)")
    add_flag(parser, "tag", action="append", default=[], metavar="KEY=VALUE", help="tag of the job; repeatable")
    add_flag(
        parser,
        "metric",
        action="append",
        default=[],
        metavar="NAME=REGEX",
        help="one more metric of the log; repeatable",
    )
    add_flag(parser, "image_uri", metavar="URI", help="container image (chosen by instance_type)")
    add_flag(parser, "pytorch_version", metavar="X.Y.Z", help="another version of AWS's PyTorch image")
    add_account_arguments(parser)
    add_flag(parser, "skip_check", action="store_true", help="do not read every local file of the channels first")
    wait = parser.add_mutually_exclusive_group()
    add_flag(wait, "wait", dest="wait", action="store_true", default=True, help="show the log until the end (default)")
    add_flag(wait, "no_wait", dest="wait", action="store_false", help="return when the job is submitted")
    add_flag(parser, "dry_run", action="store_true", help="print the request as JSON; no credentials, nothing is sent")


def read_settings(arguments: argparse.Namespace) -> JobSettings:
    """The checked settings of the parsed arguments; raises ConfigError that lists every problem."""
    problems: list[Problem] = []
    values = {key: getattr(arguments, key) for key in JobSettings.__dataclass_fields__ if hasattr(arguments, key)}
    values["tags"] = read_pairs("tag", arguments.tag, "KEY=VALUE", problems)
    values["metrics"] = read_pairs("metric", arguments.metric, "NAME=REGEX", problems)
    values["prefix"] = values["prefix"].strip("/")
    settings = JobSettings(**values)
    problems += _problems(settings)
    if problems:
        raise InvalidConfigError(problems)
    return settings


def read_pairs(key: str, texts: list[str], form: str, problems: list[Problem]) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE texts as pairs; a problem is added for every other text."""
    pairs = [tuple(text.partition("=")[::2]) for text in texts]
    problems += [
        Problem(key, f"found {text!r}", f"give {form}")
        for text, (name, value) in zip(texts, pairs)
        if not name or not value
    ]
    return tuple((name, value) for name, value in pairs)


def _problems(settings: JobSettings) -> Iterator[Problem]:
    for key in ("instance_count", "volume_size", "max_run"):
        if getattr(settings, key) < 1:
            yield Problem(key, f"found {getattr(settings, key)}", "allowed: a whole number, at least 1")
    for key, choices in (("input_mode", ("File", "FastFile")), ("distribution", ("FullyReplicated", "ShardedByS3Key"))):
        if getattr(settings, key) not in choices:
            yield Problem(key, f"found {getattr(settings, key)!r}", f"allowed: {' or '.join(choices)}")
    for key in ("output_path", "checkpoint_s3_uri"):
        uri = getattr(settings, key)
        if uri is not None and not re.match(r"s3://[^/]+", uri):
            yield Problem(key, f"found {uri!r}", "give s3://BUCKET/FOLDER")
    if settings.distribution == "ShardedByS3Key" and settings.instance_count > 1:
        fix = "give FullyReplicated: every process takes its share of the same files, so each machine needs all of them"
        yield Problem("distribution", "found 'ShardedByS3Key' with several instances", fix)
    if not _BASE_NAME.fullmatch(settings.base_job_name) or len(settings.base_job_name) > LONGEST_BASE_NAME:
        fix = f"allowed: at most {LONGEST_BASE_NAME} letters, digits and single hyphens between them"
        yield Problem("base_job_name", f"found {settings.base_job_name!r}", fix)
    if not settings.prefix:
        yield Problem("prefix", "is empty", "give a folder name of the bucket")
    yield from _spot_problems(settings)
    if settings.role is not None and settings.role.startswith("arn:") and settings.role_account is None:
        yield Problem("role", f"found {settings.role!r}", "give arn:aws:iam::<12 digits>:role/NAME, or the role's name")
    if settings.image_uri is not None and settings.pytorch_version is not None:
        yield Problem("pytorch_version", "given with image_uri", "give one of them")
    if len(settings.tags) > MOST_TAGS:
        yield Problem("tag", f"found {len(settings.tags)}", f"SageMaker takes at most {MOST_TAGS}")


def _spot_problems(settings: JobSettings) -> Iterator[Problem]:
    if settings.max_wait is None:
        return
    if not settings.spot:
        yield Problem("max_wait", "given without spot", "add --spot or leave it out")
    elif settings.max_wait < settings.max_run:
        yield Problem(
            "max_wait", f"found {settings.max_wait}, below max_run {settings.max_run}", "give at least max_run"
        )
