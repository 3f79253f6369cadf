"""Job settings outside the training Config: instance type, limits, S3 locations, tags. Needs no AWS package."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pspnet.config.problems import InvalidConfigError, Problem
from sagemaker_entry.aws.account_settings import (
    DEFAULT_PREFIX,
    LONGEST_BASE_NAME,
    MOST_TAGS,
    AccountSettings,
    add_account_arguments,
    add_flag,
    read_pairs,
)

MOST_METRICS = 40

_BASE_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")


@dataclass(frozen=True)
class JobSettings(AccountSettings):
    """Settings of `train` and `rehearse`; the defaults are those of the first users' built-in job."""

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
    skip_check: bool = False
    wait: bool = True
    dry_run: bool = False

    @property
    def machine(self) -> str:
        """The instance type."""
        return self.instance_type

    @property
    def wait_limit(self) -> int | None:
        """Time limit of a spot job in seconds, waiting included; max_run by default. None without spot."""
        return (self.max_wait or self.max_run) if self.spot else None


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of a job, shared by `train` and `rehearse`."""
    default = JobSettings()
    add_flag(parser, "role", metavar="ARN", help="IAM role that SageMaker assumes (default: the caller's)")
    for name, kind, text in (
        ("instance_type", str, "machine"),
        ("instance_count", int, "machines"),
        ("volume_size", int, "disk of each machine in GB"),
        ("max_run", int, "longest training in seconds"),
    ):
        add_flag(parser, name, type=kind, default=getattr(default, name), help=f"{text} (%(default)s)")
    add_flag(parser, "spot", action="store_true", help="spot machines: cheaper, may be interrupted; keeps checkpoints")
    add_flag(parser, "max_wait", type=int, metavar="S", help="spot: time limit including waiting (max_run)")
    add_flag(parser, "checkpoint_s3_uri", metavar="S3", help="folder of the checkpoints (spot: next to the job's code)")
    add_flag(parser, "input_mode", default="File", help="File copies the channels first, FastFile streams them")
    add_flag(parser, "distribution", default="FullyReplicated", help="FullyReplicated or ShardedByS3Key")
    add_flag(parser, "output_path", metavar="S3", help="folder of the artifact (s3://BUCKET/PREFIX/output)")
    add_flag(parser, "base_job_name", default=default.base_job_name, metavar="NAME", help="job name (%(default)s)")
    add_flag(parser, "tag", action="append", default=[], metavar="KEY=VALUE", help="tag of the job; repeatable")
    add_flag(
        parser,
        "metric",
        action="append",
        default=[],
        metavar="NAME=REGEX",
        help="additional metric of the log; repeatable",
    )
    add_flag(parser, "image_uri", metavar="URI", help="container image (chosen by instance_type)")
    add_flag(parser, "pytorch_version", metavar="X.Y.Z", help="another version of AWS's PyTorch image")
    add_account_arguments(parser)
    add_flag(parser, "skip_check", action="store_true", help="skip the check of every local file of the channels")
    wait = parser.add_mutually_exclusive_group()
    add_flag(wait, "wait", dest="wait", action="store_true", default=True, help="print the log until the end (default)")
    add_flag(wait, "no_wait", dest="wait", action="store_false", help="return after submitting the job")
    add_flag(parser, "dry_run", action="store_true", help="print the request as JSON without sending it")


def read_settings(arguments: argparse.Namespace) -> JobSettings:
    """Return the validated settings. Raises ConfigError that lists every problem."""
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
        fix = "give FullyReplicated: every process reads a shard of the same files, so each machine needs all of them"
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
        yield Problem("tag", f"found {len(settings.tags)}", f"SageMaker allows at most {MOST_TAGS}")


def _spot_problems(settings: JobSettings) -> Iterator[Problem]:
    if settings.max_wait is None:
        return
    if not settings.spot:
        yield Problem("max_wait", "given without spot", "add --spot or leave it out")
    elif settings.max_wait < settings.max_run:
        yield Problem(
            "max_wait", f"found {settings.max_wait}, below max_run {settings.max_run}", "give at least max_run"
        )
