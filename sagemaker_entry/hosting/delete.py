"""`delete`: remove an endpoint with its configurations, models and autoscaling, or all created resources."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pspnet.config.command_line import parse_settings
from pspnet.config.problems import Problem
from pspnet.config.settings import setting
from pspnet.errors import ConfigError
from sagemaker_entry.aws.account_settings import SessionSettings
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.resources import Group, describe_endpoint, find_groups, owner_of, remove
from sagemaker_entry.aws.session import boto_session


@dataclass(frozen=True, init=False)
class DeleteSettings(SessionSettings):
    """Settings of `delete`."""

    endpoint: str | None = setting(None, "name of the endpoint", positional=True, metavar="ENDPOINT")
    all: bool = setting(False, "all endpoints, configurations and models made by these commands")
    yes: bool = setting(False, "do not ask for confirmation")

    def conflicts(self) -> Iterator[Problem]:
        """See Settings."""
        if (self.endpoint is not None) == self.all:
            found = "given with --all" if self.all else "missing"
            yield Problem("endpoint", found, "give either the name of an endpoint, or --all", ("all",))


def delete_command(argv: Sequence[str], command: str) -> int:
    """List the resources, ask for confirmation, remove them. Resources without the project's tag are never touched."""
    settings = parse_settings(DeleteSettings, argv, command, "Delete an endpoint and its resources.")
    require_packages("boto3")
    session = boto_session(settings)
    client = session.client("sagemaker")
    groups = list(find_groups(client, settings.endpoint).values())
    if settings.endpoint and not any(group.endpoint for group in groups):
        _check_foreign(client, settings.endpoint, bool(groups))
    if not groups:
        print(f"Found no resources of this project in {session.region_name}.")
        return 0
    print(f"To be deleted in {session.region_name}:")
    for group in groups:
        for line in group.lines():
            print(f"  {line}")
    if not settings.yes and not confirmed():
        print("Nothing was deleted.")
        return 1
    return remove_all(session, groups)


def _check_foreign(client: Any, endpoint: str, leftovers: bool) -> None:
    """Raise AwsError for an endpoint that does not exist or was not created by these commands."""
    found = describe_endpoint(client, endpoint)
    if found is not None:
        with aws_errors(f"describing the endpoint {endpoint}"):
            foreign = owner_of(client, found["EndpointArn"]) is None
        if foreign:
            raise AwsError(
                f"the endpoint {endpoint} was not created by this project (it lacks the tag), so it is kept; "
                f"`aws sagemaker delete-endpoint --endpoint-name {endpoint}` deletes it."
            )
    if not leftovers:
        raise AwsError(f"no such endpoint {endpoint}; `python -m sagemaker_entry status` lists the existing ones.")


def confirmed() -> bool:
    """Ask on the terminal. Raises ConfigError without one."""
    if not sys.stdin.isatty():
        raise ConfigError("delete: no terminal to ask for confirmation; give --yes to delete without it.")
    return input("Delete all of this? Type yes: ").strip().lower() == "yes"


def remove_all(session: Any, groups: list[Group]) -> int:
    """Remove every group; print an error of one and continue with the others. Return the exit code."""
    failed = 0
    for group in groups:
        try:
            remove(session, group)
        except AwsError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0
