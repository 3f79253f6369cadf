"""Settings of a stream, named like the flags of `pspnet stream`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.settings import Settings, setting
from pspnet.config.values import show
from pspnet.stream.sinks.sink_settings import SinkSettings
from pspnet.stream.sources.kinesis_client import start_selector


def _check_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text, re.ASCII):
        raise ValueError(text)
    return text


def _check_start(text: str) -> str:
    start_selector(text)  # its error is a ValueError
    return text


@dataclass(frozen=True, init=False)
class StreamSettings(Settings):
    """Settings of one stream; docs/stream.md describes sources and sinks. Raises ConfigError."""

    source: str = setting(
        ..., "A video file, a folder of images, camera:0, /dev/video0, rtsp://..., http(s)://..., kvs://STREAM.",
        positional=True, placeholder="", allowed="a file, folder, camera or URL", metavar="SOURCE",
    )  # fmt: skip
    to: tuple[str, ...] = setting(
        ..., "Where the masks go, see below.", group="Delivery", repeated=True, placeholder=(), allowed="sinks"
    )

    policy: Literal["auto", "latest", "all"] = setting(
        "auto", "latest: drop late frames; all: keep every frame; auto: latest for live sources.", group="Frames"
    )
    rate: float | Literal["own"] | None = setting(
        None, "Play a file or folder as a live source; requested from a camera.",
        group="Frames", allowed="own, or frames per second above 0 up to 1000", gt=0, le=1000,
    )  # fmt: skip
    size: str | None = setting(
        None, "Frame size requested from a camera.", group="Frames", allowed="WIDTHxHEIGHT", check=_check_size
    )
    max_frames: int | None = setting(None, "Stop after this many frames.", group="Frames", ge=1)
    start: str = setting(
        "now", "Start of a kvs:// stream.", group="Frames", check=_check_start,
        allowed="now, earliest, seconds since the epoch, fragment:NUMBER (starts after it) or token:TOKEN",
    )  # fmt: skip
    give_up: float = setting(
        300.0, "Stop retrying a live source or an endpoint after these seconds without a connection.",
        group="Frames", ge=0,
    )  # fmt: skip

    opacity: float = setting(0.5, "Opacity of the mask in overlays.", group="Delivery", ge=0, le=1)
    legend: bool = setting(False, "Add a class legend to overlays.", group="Delivery")
    spill: Path = setting(
        Path("pspnet-spill"), "Folder for masks that are not delivered yet, created on demand.", group="Delivery"
    )
    spill_bytes: int = setting(2**30, "Maximum bytes in that folder for each sink.", group="Delivery", ge=0)
    grace: float = setting(
        30.0, "Seconds that a failing sink gets after the end of the stream.", group="Delivery", ge=0
    )
    sink_setting: tuple[str, ...] = setting(
        (), "Additional settings of sinks, see below.", group="Delivery", repeated=True, allowed="NAME=VALUE"
    )
    summary: Path | None = setting(None, "JSON file for the statistics at the end.", group="Delivery")

    region: str | None = setting(None, "AWS region, for endpoint names, s3:// and kvs://.", group="AWS")
    profile: str | None = setting(None, "Profile of the AWS configuration.", group="AWS")
    aws_endpoint: str | None = setting(
        None, "Endpoint URL of an S3 and Kinesis Video emulator.", group="AWS", allowed="a URL"
    )

    def conflicts(self) -> Iterator[Problem]:
        """Invalid sinks and sink settings."""
        # Imported here: the sinks need OpenCV, --help does not.
        from pspnet.stream.sinks.factory import check_sinks

        yield from check_sinks(self.to)
        for text in self.sink_setting:
            if not re.match(r"[^=]+=", text):
                yield Problem("sink_setting", f"found {show(text)}", "allowed: NAME=VALUE")
        try:
            self.sink_settings()
        except InvalidConfigError as error:
            for problem in error.problems:
                yield Problem("sink_setting", f"{problem.key}: {problem.found}", problem.fix)

    def sink_settings(self) -> SinkSettings:
        """Return the settings of individual sinks. Raises ConfigError."""
        parts = [text.partition("=") for text in self.sink_setting]
        return SinkSettings(
            **{name.strip().replace("-", "_"): value for name, equals, value in parts if name and equals}
        )
