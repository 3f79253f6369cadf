"""Settings of `deploy` and `transform`: model, instance type or serverless, limits, autoscaling, tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspnet.config.problems import Problem
from pspnet.config.settings import setting
from sagemaker_entry.aws.account_settings import (
    BASE_NAME,
    DEFAULT_PREFIX,
    INSTANCE_TYPE,
    MOST_TAGS,
    S3_FOLDER,
    ResourceSettings,
    are_pairs,
    is_base_name,
    is_instance_type,
    is_s3_folder,
    matching,
    pairs,
)
from sagemaker_entry.aws.resources import PROJECT_TAG
from sagemaker_entry.aws.s3_objects import s3_folder

MOST_SERVERLESS = 200


@dataclass(frozen=True, init=False)
class ModelSettings(ResourceSettings):
    """Settings of every command that creates a SageMaker model."""

    model: str = setting(
        ...,
        "model directory, model.tar.gz, s3://.../model.tar.gz or name of a training job",
        positional=True,
        metavar="MODEL",
    )
    base_name: str = setting(DEFAULT_PREFIX, "beginning of names", allowed=BASE_NAME, check=is_base_name)
    instance_type: str = setting("ml.t2.xlarge", "machine", allowed=INSTANCE_TYPE, check=is_instance_type)
    workers: int = setting(1, "worker processes of the container", ge=1)
    env: tuple[str, ...] = setting(
        (), "variable of the container; may be repeated", allowed="KEY=VALUE", check=are_pairs, repeated=True
    )
    refresh_code: bool = setting(False, "replace the model's code/ with that of this version")

    @property
    def machine(self) -> str:
        """The instance type."""
        return self.instance_type

    @property
    def host_type(self) -> str | None:
        """The instance type, None for a serverless endpoint."""
        return self.instance_type

    @property
    def isolated(self) -> bool:
        """True for a container without network."""
        return False

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the container that the user set."""
        return dict(pairs(self.env))

    def conflicts(self) -> Iterator[Problem]:
        """See Settings."""
        if len(self.tag) >= MOST_TAGS:
            fix = f"SageMaker allows {MOST_TAGS}, one of which is the project's"
            yield Problem("tag", f"found {len(self.tag)}", fix)
        if PROJECT_TAG in dict(self.tags):
            yield Problem("tag", f"found {PROJECT_TAG}", "give another key: this one marks what `delete` may remove")


@dataclass(frozen=True, init=False)
class HostSettings(ModelSettings):
    """Settings of `deploy`; the defaults are those of the first users' endpoint."""

    endpoint_name: str | None = setting(
        None,
        "name of the endpoint; base_name and the time if unset",
        allowed="at most 63 letters, digits and hyphens between them",
        check=matching(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
    )
    update: bool = setting(False, "deploy to the existing endpoint_name")
    serverless: bool = setting(False, "billed by request; CPU only, with cold starts")
    memory: Literal[1024, 2048, 3072, 4096, 5120, 6144] = setting(6144, "serverless: memory in MB")
    asynchronous: bool = setting(False, "requests and answers as objects on S3, up to 1 GB")
    concurrency: int | None = setting(
        None, "serverless, asynchronous: concurrent requests; 5 or 2 if unset", ge=1, le=1000
    )
    output_path: str | None = setting(
        None,
        "asynchronous: folder of the answers; s3://BUCKET/PREFIX/answers if unset",
        allowed=S3_FOLDER,
        check=is_s3_folder,
    )
    max_instances: int | None = setting(None, "autoscaling: largest number of machines; off if unset", ge=1)
    min_instances: int | None = setting(None, "autoscaling: smallest number of machines; 1 if unset", ge=0)
    target_invocations: int = setting(
        60, "autoscaling: target requests per machine and minute; asynchronous: queued requests", ge=1
    )
    data_capture: int = setting(0, "percentage of the requests to keep on S3", ge=0, le=100)
    network_isolation: bool = setting(False, "container without network; needs image_uri")

    @property
    def machine(self) -> str:
        """Requested instance type, or "a serverless endpoint"."""
        return "a serverless endpoint" if self.serverless else self.instance_type

    @property
    def host_type(self) -> str | None:
        """See ModelSettings."""
        return None if self.serverless else self.instance_type

    @property
    def isolated(self) -> bool:
        """See ModelSettings."""
        return self.network_isolation

    @property
    def scales(self) -> bool:
        """True with autoscaling."""
        return self.max_instances is not None

    def conflicts(self) -> Iterator[Problem]:
        """See Settings."""
        yield from super().conflicts()
        if self.network_isolation and self.image_uri is None:
            fix = "give --image_uri: AWS's image installs the model's requirements from the network when it starts"
            yield Problem("network_isolation", "given without image_uri", fix, ("image_uri",))
        if self.update and self.endpoint_name is None:
            fix = "add --endpoint_name with the endpoint to update"
            yield Problem("update", "given without endpoint_name", fix, ("endpoint_name",))
        if self.output_path is not None and not self.asynchronous:
            fix = "add --asynchronous or leave it out"
            yield Problem("output_path", "given without asynchronous", fix, ("asynchronous",))
        if self.concurrency is not None and not (self.serverless or self.asynchronous):
            fix = "it is for --serverless or --asynchronous"
            yield Problem("concurrency", "given for a real-time endpoint", fix, ("serverless", "asynchronous"))
        if self.serverless:
            yield from self._serverless_conflicts()
        yield from self._scaling_conflicts()

    def _serverless_conflicts(self) -> Iterator[Problem]:
        if self.asynchronous:
            yield Problem("serverless", "given with asynchronous", "give one of them")
        if (self.concurrency or 0) > MOST_SERVERLESS:
            yield Problem(
                "concurrency", f"found {self.concurrency}", f"allowed: 1 to {MOST_SERVERLESS} with serverless"
            )
        # Features that AWS documents as unsupported there.
        for key in ("data_capture", "network_isolation", "max_instances"):
            if getattr(self, key):
                yield Problem(key, "given with serverless", "serverless endpoints do not support it; leave it out")

    def _scaling_conflicts(self) -> Iterator[Problem]:
        if self.max_instances is None:
            if self.min_instances is not None:
                fix = "add --max_instances or leave it out"
                yield Problem("min_instances", "given without max_instances", fix, ("max_instances",))
            return
        if self.min_instances == 0 and not self.asynchronous:
            yield Problem("min_instances", "found 0", "allowed: at least 1 (0 with --asynchronous only)")
        if self.max_instances < max(self.min_instances or 0, self.instance_count):
            fix = "give at least min_instances and instance_count"
            others = ("min_instances", "instance_count")
            yield Problem("max_instances", f"found {self.max_instances}", fix, others)
        if not self.wait:
            fix = "autoscaling requires an endpoint in service: leave out --no_wait, or max_instances"
            yield Problem("max_instances", "given with no_wait", fix, ("wait",))


def _folder(uri: str) -> str:
    return s3_folder(is_s3_folder(uri))


@dataclass(frozen=True, init=False)
class TransformSettings(ModelSettings):
    """Settings of `transform`."""

    model: str = setting(..., "name of a SageMaker model, or what `deploy` takes", positional=True, metavar="MODEL")
    images: str = setting(
        ...,
        "folder that holds only images",
        positional=True,
        metavar="S3_IMAGES",
        allowed=S3_FOLDER,
        check=_folder,
        placeholder="",
    )
    output: str = setting(..., "folder for the masks", allowed=S3_FOLDER, check=_folder, placeholder="")
    fetch: Path | None = setting(None, "afterwards, write the masks to this local folder as <name>.png")
    accept: str = setting("image/png; palette=true", "format of the answers")
    concurrent: int = setting(2, "concurrent images per machine", ge=1)
    # SageMaker offers no ml.t2 instances for batch transforms.
    instance_type: str = setting("ml.m5.xlarge", "machine", allowed=INSTANCE_TYPE, check=is_instance_type)

    def conflicts(self) -> Iterator[Problem]:
        """See Settings."""
        yield from super().conflicts()
        if self.images == self.output:
            fix = "give another folder: the next transform would read the masks as images"
            yield Problem("output", "the same folder as the images", fix, ("images",))
        if self.fetch is not None and not self.wait:
            fix = "masks can only be fetched after the transform has completed"
            yield Problem("fetch", "given with no_wait", fix, ("wait",))
