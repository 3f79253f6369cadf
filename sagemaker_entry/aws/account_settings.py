"""Account settings shared by all AWS commands (role, bucket, prefix, region, profile), their flags, resource names."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any

from pspnet.config.problems import Problem

DEFAULT_PREFIX = "xporter-segmentation"
LONGEST_BASE_NAME = 48
"""A job name has at most 63 characters, of which the SDK's date takes 15."""
MOST_TAGS = 50

_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/[\w+=,.@/-]+", re.ASCII)


@dataclass(frozen=True)
class AccountSettings:
    """Role, bucket and session of a command."""

    role: str | None = None
    bucket: str | None = None
    prefix: str = DEFAULT_PREFIX
    region: str | None = None
    profile: str | None = None

    @property
    def machine(self) -> str | None:
        """Requested instance type for error messages, None if the command requests none."""
        return None

    @property
    def role_account(self) -> str | None:
        """Account number in the role's ARN, None without an ARN."""
        match = _ROLE_ARN.fullmatch(self.role or "")
        return match.group(1) if match else None


def add_flag(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup, name: str, **options: Any) -> None:
    """Add a flag that is accepted with underscores and with hyphens."""
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **options)


def add_account_arguments(parser: argparse.ArgumentParser) -> None:
    """Add bucket, prefix, region and profile."""
    add_flag(parser, "bucket", metavar="NAME", help="S3 bucket (SageMaker's default bucket of the account and region)")
    add_flag(parser, "prefix", default=DEFAULT_PREFIX, metavar="PREFIX", help="folder in the bucket (%(default)s)")
    add_flag(parser, "region", metavar="REGION", help="AWS region (from the environment or the AWS configuration)")
    add_flag(parser, "profile", metavar="NAME", help="profile of the AWS configuration")


def read_pairs(key: str, texts: list[str], form: str, problems: list[Problem]) -> tuple[tuple[str, str], ...]:
    """Parse NAME=VALUE texts into pairs; add a problem for every invalid text."""
    pairs = [tuple(text.partition("=")[::2]) for text in texts]
    problems += [
        Problem(key, f"found {text!r}", f"give {form}")
        for text, (name, value) in zip(texts, pairs)
        if not name or not value
    ]
    return tuple((name, value) for name, value in pairs)


def unique_name(base: str, stamp: str) -> str:
    """Return a job name of the base name and a date such as 20260131235959, in the SDK's format."""
    return f"{base.replace('_', '-')}-{stamp}"[:63]
