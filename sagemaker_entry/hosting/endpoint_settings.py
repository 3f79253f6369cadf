"""The settings of an endpoint: machine or serverless, limits, autoscaling, places, tags. Needs no AWS package."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pspnet.config.problems import InvalidConfigError, Problem
from sagemaker_entry.training.job_settings import (
    DEFAULT_PREFIX,
    LONGEST_BASE_NAME,
    MOST_TAGS,
    JobSettings,
    add_account_arguments,
    add_flag,
    read_pairs,
)

SERVERLESS_MEMORY = range(1024, 6144 + 1, 1024)
"""Memory sizes in MB that AWS offers for a serverless endpoint."""
MOST_SERVERLESS, MOST_CONCURRENT = 200, 1000
PROJECT_TAG = "pspnet"
"""Key of the tag on all that these commands create; its value is the endpoint's name, or the transform's."""

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_S3 = re.compile(r"s3://[^/]+(/.*)?")


@dataclass(frozen=True)
class HostSettings:
    """How a model is hosted; the machine of the first users' endpoint is the default."""

    endpoint_name: str | None = None
    base_name: str = DEFAULT_PREFIX
    instance_type: str = "ml.t2.xlarge"
    instance_count: int = 1
    workers: int = 1
    serverless: bool = False
    memory: int = 6144
    asynchronous: bool = False
    concurrency: int | None = None
    output_path: str | None = None
    min_instances: int | None = None
    max_instances: int | None = None
    target_invocations: int = 60
    data_capture: int = 0
    network_isolation: bool = False
    refresh_code: bool = False
    update: bool = False
    env: tuple[tuple[str, str], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    image_uri: str | None = None
    role: str | None = None
    bucket: str | None = None
    prefix: str = DEFAULT_PREFIX
    region: str | None = None
    profile: str | None = None
    wait: bool = True
    dry_run: bool = False

    @property
    def account(self) -> JobSettings:
        """Role, bucket and session as `train` has them."""
        return JobSettings(
            instance_type="a serverless endpoint" if self.serverless else self.instance_type,
            role=self.role,
            bucket=self.bucket,
            prefix=self.prefix,
            region=self.region,
            profile=self.profile,
        )

    @property
    def scales(self) -> bool:
        """Whether the number of machines follows the load."""
        return self.max_instances is not None


def add_model_arguments(parser: argparse.ArgumentParser, instance_type: str, tagged: str) -> None:
    """What every command takes that brings a model into SageMaker: image, role, machine, environment, places."""
    default = HostSettings()
    add_flag(parser, "base_name", default=default.base_name, metavar="NAME", help="beginning of names (%(default)s)")
    add_flag(parser, "instance_type", default=instance_type, help="machine (%(default)s)")
    add_flag(parser, "instance_count", type=int, default=1, metavar="N", help="machines (%(default)s)")
    add_flag(parser, "workers", type=int, default=1, metavar="N", help="processes with a model each (%(default)s)")
    add_flag(parser, "image_uri", metavar="URI", help="container image (AWS's PyTorch inference image)")
    add_flag(parser, "role", metavar="ARN", help="IAM role that SageMaker takes on (the caller's own in a notebook)")
    add_flag(
        parser, "env", action="append", default=[], metavar="KEY=VALUE", help="variable of the container; repeatable"
    )
    add_flag(parser, "tag", action="append", default=[], metavar="KEY=VALUE", help=f"tag of {tagged}; repeatable")
    add_flag(
        parser, "refresh_code", action="store_true", help="replace the model's code/ by that of this pspnet's version"
    )
    add_account_arguments(parser)


def add_deploy_arguments(parser: argparse.ArgumentParser) -> None:
    """All arguments of `deploy` but the model."""
    default = HostSettings()
    add_flag(parser, "endpoint_name", metavar="NAME", help="name of the endpoint (base_name and the time)")
    add_flag(parser, "update", action="store_true", help="give the existing endpoint_name this model and configuration")
    add_model_arguments(parser, default.instance_type, "endpoint, configuration and model")
    add_flag(parser, "serverless", action="store_true", help="no machine: billed by request, CPU only, slow first one")
    add_flag(parser, "memory", type=int, default=default.memory, metavar="MB", help="serverless: memory (%(default)s)")
    add_flag(parser, "asynchronous", action="store_true", help="requests and answers as objects on S3, up to 1 GB")
    add_flag(parser, "concurrency", type=int, metavar="N", help="serverless, asynchronous: requests at a time (5, 2)")
    add_flag(parser, "output_path", metavar="S3", help="asynchronous: where answers go (s3://BUCKET/PREFIX/answers)")
    add_flag(parser, "max_instances", type=int, metavar="N", help="autoscaling: at most so many machines (none)")
    add_flag(parser, "min_instances", type=int, metavar="N", help="autoscaling: at least so many machines (1)")
    add_flag(
        parser,
        "target_invocations",
        type=int,
        default=default.target_invocations,
        metavar="N",
        help="autoscaling: requests per machine and minute that it aims at; asynchronous: waiting ones (%(default)s)",
    )
    add_flag(parser, "data_capture", type=int, default=0, metavar="PERCENT", help="requests kept on S3 (%(default)s)")
    add_flag(parser, "network_isolation", action="store_true", help="container without network; needs --image_uri")
    wait = parser.add_mutually_exclusive_group()
    add_flag(wait, "wait", dest="wait", action="store_true", default=True, help="wait until it answers (default)")
    add_flag(wait, "no_wait", dest="wait", action="store_false", help="return when it is being created")
    add_flag(parser, "dry_run", action="store_true", help="print the requests as JSON; no credentials, nothing is sent")


def read_host_settings(arguments: argparse.Namespace) -> HostSettings:
    """The checked settings of the parsed arguments; raises ConfigError that lists every problem."""
    problems: list[Problem] = []
    values = {key: getattr(arguments, key) for key in HostSettings.__dataclass_fields__ if hasattr(arguments, key)}
    values["tags"] = read_pairs("tag", arguments.tag, "KEY=VALUE", problems)
    values["env"] = read_pairs("env", arguments.env, "KEY=VALUE", problems)
    values["prefix"] = values["prefix"].strip("/")
    settings = HostSettings(**values)
    problems += [*_problems(settings), *_kind_problems(settings), *_scaling_problems(settings)]
    if problems:
        raise InvalidConfigError(problems)
    return settings


def _problems(settings: HostSettings) -> Iterator[Problem]:
    for key in ("instance_count", "workers", "target_invocations"):
        if getattr(settings, key) < 1:
            yield Problem(key, f"found {getattr(settings, key)}", "allowed: a whole number, at least 1")
    if settings.endpoint_name is not None and not _NAME.fullmatch(settings.endpoint_name):
        fix = "allowed: at most 63 letters, digits and hyphens between them"
        yield Problem("endpoint_name", f"found {settings.endpoint_name!r}", fix)
    if not _NAME.fullmatch(settings.base_name) or len(settings.base_name) > LONGEST_BASE_NAME:
        fix = f"allowed: at most {LONGEST_BASE_NAME} letters, digits and hyphens between them"
        yield Problem("base_name", f"found {settings.base_name!r}", fix)
    if not settings.prefix:
        yield Problem("prefix", "is empty", "give a folder name of the bucket")
    if settings.role is not None and settings.role.startswith("arn:") and settings.account.role_account is None:
        yield Problem("role", f"found {settings.role!r}", "give arn:aws:iam::<12 digits>:role/NAME, or the role's name")
    if len(settings.tags) >= MOST_TAGS:
        yield Problem(
            "tag", f"found {len(settings.tags)}", f"SageMaker takes at most {MOST_TAGS}, one of which is ours"
        )
    if PROJECT_TAG in dict(settings.tags):
        yield Problem("tag", f"found {PROJECT_TAG}", "give another key: this one marks what `delete` may remove")
    if not 0 <= settings.data_capture <= 100:
        yield Problem("data_capture", f"found {settings.data_capture}", "allowed: 0 (none) to 100 percent")
    if settings.network_isolation and settings.image_uri is None:
        fix = "give --image_uri: AWS's image installs the model's requirements from the network when it starts"
        yield Problem("network_isolation", "given without image_uri", fix)
    if settings.update and settings.endpoint_name is None:
        yield Problem("update", "given without endpoint_name", "add --endpoint_name with the endpoint to update")


def _kind_problems(settings: HostSettings) -> Iterator[Problem]:
    if settings.serverless and settings.asynchronous:
        yield Problem("serverless", "given with asynchronous", "give one of them")
    if settings.serverless and settings.memory not in SERVERLESS_MEMORY:
        allowed = ", ".join(map(str, SERVERLESS_MEMORY))
        yield Problem("memory", f"found {settings.memory}", f"AWS offers {allowed} MB")
    most = MOST_SERVERLESS if settings.serverless else MOST_CONCURRENT
    if settings.concurrency is not None and not 1 <= settings.concurrency <= most:
        yield Problem("concurrency", f"found {settings.concurrency}", f"allowed: 1 to {most}")
    if settings.concurrency is not None and not (settings.serverless or settings.asynchronous):
        yield Problem("concurrency", "given for a real-time endpoint", "it is for --serverless or --asynchronous")
    if settings.output_path is not None and not settings.asynchronous:
        yield Problem("output_path", "given without asynchronous", "add --asynchronous or leave it out")
    if settings.output_path is not None and not _S3.fullmatch(settings.output_path):
        yield Problem("output_path", f"found {settings.output_path!r}", "give s3://BUCKET/FOLDER")
    if settings.serverless:
        # What AWS documents as missing there.
        for key, given in (
            ("data_capture", settings.data_capture > 0),
            ("network_isolation", settings.network_isolation),
            ("max_instances", settings.scales),
        ):
            if given:
                yield Problem(key, "given with serverless", "serverless endpoints do not have it; leave it out")


def _scaling_problems(settings: HostSettings) -> Iterator[Problem]:
    if settings.max_instances is None:
        if settings.min_instances is not None:
            yield Problem("min_instances", "given without max_instances", "add --max_instances or leave it out")
        return
    least = 0 if settings.asynchronous else 1
    low = 1 if settings.min_instances is None else settings.min_instances
    if low < least:
        yield Problem("min_instances", f"found {low}", f"allowed: at least {least} (0 with --asynchronous only)")
    if settings.max_instances < max(low, settings.instance_count):
        fix = "give at least min_instances and instance_count"
        yield Problem("max_instances", f"found {settings.max_instances}", fix)
    if not settings.wait:
        fix = "autoscaling can be set when the endpoint is in service: leave out --no_wait, or max_instances"
        yield Problem("max_instances", "given with no_wait", fix)
