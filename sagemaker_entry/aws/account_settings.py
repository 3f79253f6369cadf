"""Settings shared by the AWS commands (region, bucket, role, tags, image), and resource names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pspnet.config.problems import Problem
from pspnet.config.settings import Settings, setting

DEFAULT_PREFIX = "xporter-segmentation"
LONGEST_BASE_NAME = 48
"""A job name has at most 63 characters, of which the SDK's date takes 15."""
MOST_TAGS = 50
S3_FOLDER, INSTANCE_TYPE = "s3://BUCKET/FOLDER", "ml.FAMILY.SIZE, such as ml.g4dn.xlarge"

_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/[\w+=,.@/-]+", re.ASCII)


def matching(pattern: str, longest: int = 2048) -> Callable[[str], str]:
    """A check of a setting: the whole text matches the pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII) or len(text) > longest:
            raise ValueError(f"does not match {pattern}")
        return text

    return check


is_s3_folder = matching(r"s3://[^/]+(/.*)?")
is_instance_type = matching(r"ml\.[a-z][a-z0-9-]*\.[a-z0-9]+")
is_base_name = matching(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", LONGEST_BASE_NAME)
BASE_NAME = f"at most {LONGEST_BASE_NAME} letters, digits and hyphens between them"


def are_pairs(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The check of repeated NAME=VALUE settings."""
    if not all(name and value for name, value in pairs(texts)):
        raise ValueError("not NAME=VALUE")
    return texts


def pairs(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The names and values of NAME=VALUE texts."""
    return tuple((name, value) for name, _, value in (text.partition("=") for text in texts))


def _folder_name(text: str) -> str:
    if not text.strip("/"):
        raise ValueError("empty")
    return text.strip("/")


def _role(text: str) -> str:
    if text.startswith("arn:") and not _ROLE_ARN.fullmatch(text):
        raise ValueError("not the ARN of a role")
    return text


@dataclass(frozen=True, init=False)
class SessionSettings(Settings):
    """Settings of an AWS session."""

    region: str | None = setting(None, "from the environment or the AWS configuration if unset", allowed="AWS region")
    profile: str | None = setting(None, "profile of the AWS configuration")


@dataclass(frozen=True, init=False)
class AccountSettings(SessionSettings):
    """Session and bucket of a command."""

    bucket: str | None = setting(None, "S3 bucket; SageMaker's default bucket of the account and region if unset")
    prefix: str = setting(DEFAULT_PREFIX, "folder in the bucket", allowed="a folder name", check=_folder_name)


@dataclass(frozen=True, init=False)
class ResourceSettings(AccountSettings):
    """Settings of commands that create jobs, models or endpoints."""

    role: str | None = setting(
        None,
        "IAM role that SageMaker assumes; the caller's if unset",
        allowed="the role's name, or arn:aws:iam::<12 digits>:role/NAME",
        check=_role,
    )
    instance_count: int = setting(1, "machines", ge=1)
    image_uri: str | None = setting(None, "container image; AWS's PyTorch image for the instance type if unset")
    tag: tuple[str, ...] = setting(
        (), "tag of everything created; may be repeated", allowed="KEY=VALUE", check=are_pairs, repeated=True
    )
    wait: bool = setting(True, "wait for the end and print the states; --no_wait returns after the request")
    dry_run: bool = setting(False, "print the requests as JSON without sending them")

    @property
    def machine(self) -> str:
        """Requested instance type for error messages."""
        raise NotImplementedError

    @property
    def role_account(self) -> str | None:
        """Account number in the role's ARN, None without an ARN."""
        match = _ROLE_ARN.fullmatch(self.role or "")
        return match.group(1) if match else None

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Keys and values of the tags."""
        return pairs(self.tag)

    def conflicts(self) -> Iterator[Problem]:
        """See Settings."""
        if len(self.tag) > MOST_TAGS:
            yield Problem("tag", f"found {len(self.tag)}", f"SageMaker allows at most {MOST_TAGS}")


def unique_name(base: str, stamp: str) -> str:
    """Return a job name of the base name and a date such as 20260131235959, in the SDK's format."""
    return f"{base.replace('_', '-')}-{stamp}"[:63]
