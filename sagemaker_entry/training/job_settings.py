"""Job settings outside the training Config: instance type, limits, S3 locations, tags. Needs no AWS package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pspnet.config.command_help import command_help
from pspnet.config.parsing import Arguments, parse_arguments
from pspnet.config.problems import Problem
from pspnet.config.reference import dump_yaml
from pspnet.config.settings import setting
from sagemaker_entry.aws.account_settings import (
    BASE_NAME,
    DEFAULT_PREFIX,
    INSTANCE_TYPE,
    S3_FOLDER,
    ResourceSettings,
    are_pairs,
    is_base_name,
    is_instance_type,
    is_s3_folder,
    pairs,
)

MOST_METRICS = 40


@dataclass(frozen=True, init=False)
class JobSettings(ResourceSettings):
    """Settings of `train` and `rehearse`; the defaults are those of the first users' built-in job."""

    instance_type: str = setting("ml.p2.xlarge", "machine", allowed=INSTANCE_TYPE, check=is_instance_type)
    volume_size: int = setting(50, "disk of each machine in GB", ge=1)
    max_run: int = setting(360000, "longest training in seconds", ge=1)
    spot: bool = setting(False, "spot machines: cheaper, may be interrupted; keeps checkpoints")
    max_wait: int | None = setting(None, "spot: time limit in seconds including waiting; max_run if unset", ge=1)
    checkpoint_s3_uri: str | None = setting(
        None,
        "folder of the checkpoints; next to the job's code for spot machines if unset",
        allowed=S3_FOLDER,
        check=is_s3_folder,
    )
    input_mode: Literal["File", "FastFile"] = setting("File", "File copies the channels first, FastFile streams them")
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] = setting("FullyReplicated", "files of each machine")
    output_path: str | None = setting(
        None, "folder of the artifact; s3://BUCKET/PREFIX/output if unset", allowed=S3_FOLDER, check=is_s3_folder
    )
    base_job_name: str = setting(DEFAULT_PREFIX, "beginning of the job's name", allowed=BASE_NAME, check=is_base_name)
    metric: tuple[str, ...] = setting(
        (), "additional metric of the log; may be repeated", allowed="NAME=REGEX", check=are_pairs, repeated=True
    )
    pytorch_version: str | None = setting(None, "another version of AWS's PyTorch image", allowed="X.Y.Z")
    skip_check: bool = setting(False, "skip the check of every local file of the channels")

    @property
    def machine(self) -> str:
        """The instance type."""
        return self.instance_type

    @property
    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Names and patterns of the additional metrics."""
        return pairs(self.metric)

    @property
    def wait_limit(self) -> int | None:
        """Time limit of a spot job in seconds, waiting included; max_run by default. None without spot."""
        return (self.max_wait or self.max_run) if self.spot else None

    def conflicts(self) -> Iterator[Problem]:
        """See Settings."""
        yield from super().conflicts()
        if self.distribution == "ShardedByS3Key" and self.instance_count > 1:
            fix = "give FullyReplicated: every process reads a shard of the same files, so each machine needs all"
            yield Problem("distribution", "found 'ShardedByS3Key' with several instances", fix, ("instance_count",))
        if self.max_wait is not None and not self.spot:
            yield Problem("max_wait", "given without spot", "add --spot or leave it out", ("spot",))
        elif self.max_wait is not None and self.max_wait < self.max_run:
            found = f"found {self.max_wait}, below max_run {self.max_run}"
            yield Problem("max_wait", found, "give at least max_run", ("max_run",))
        if self.image_uri is not None and self.pytorch_version is not None:
            yield Problem("pytorch_version", "given with image_uri", "give one of them")


def parse_job(
    kind: type[JobSettings], argv: Sequence[str], env: Mapping[str, str], command: str, description: str
) -> Arguments:
    """Parse the settings of training, and in `more` those of the job. Raises ConfigError that lists every problem.

    With --help or --print_config, print what it requests and end the program with 0.
    """
    parsed = parse_arguments(argv, env, more=[kind])
    if parsed.help_requested or parsed.print_config:
        text = command_help(kind, command, description) if parsed.help_requested else dump_yaml(parsed.config)
        print(text, end="")
        raise SystemExit(0)
    return parsed
