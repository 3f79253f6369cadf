"""Command `pspnet stream`: live masks of a video file, camera or stream, delivered to several sinks."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.errors import ConfigError

if TYPE_CHECKING:
    from pspnet.stream.model import Model

_SINKS = """Sinks:
  DIR, s3://BUCKET/PREFIX   compact mask files with an index
  FILE.mp4, FILE.mkv        overlay video
  window, web[:PORT]        live overlay in a window, or in a browser on this machine
  -, png:-                  masks on standard output, each after a line of JSON; PNG files only
  http(s)://...             an HTTP request for every mask
See docs/stream.md."""
_STOP_MESSAGE = "no more frames; delivering what was taken. A second signal stops immediately."
_EXIT_MESSAGE = "Stopped immediately: masks that were not delivered and are not on disk are lost."


def register(subparsers: Any) -> None:
    """Add the command to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "stream",
        help="live masks of a video, camera or stream",
        description="Predict the masks of a source's frames live and deliver them to several sinks in parallel.",
        epilog=_SINKS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE",
        help="a video file, a folder of images, camera:0, /dev/video0, rtsp://..., http(s)://..., kvs://STREAM",
    )  # fmt: skip
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="MODEL_DIR", help="a model directory written by training")
    model.add_argument("--endpoint", metavar="NAME_OR_URL", help="a SageMaker endpoint, or the URL of a server")
    parser.add_argument("--to", action="extend", nargs="+", required=True, metavar="SINK", help="sinks, see below")
    _add_flow(parser)
    _add_model(parser)
    _add_delivery(parser)
    parser.set_defaults(run=stream_command)


def _add(parser: Any, name: str, **keywords: Any) -> None:
    parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), dest=name, **keywords)


def _add_flow(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames")
    _add(
        group, "policy", default="auto", choices=["auto", "latest", "all"],
        help="latest: drop late frames; all: keep every frame; auto: latest for live sources (default: auto)",
    )  # fmt: skip
    _add(
        group, "rate", metavar="own|N",
        help="play a file or folder as a live source, at its own rate or N frames per second; requested from a camera",
    )  # fmt: skip
    _add(group, "size", metavar="WxH", help="frame size requested from a camera")
    _add(group, "max_frames", type=_integer(1), metavar="N", help="stop after N frames")
    _add(
        group, "start", default="now", metavar="WHEN",
        help="start of a kvs:// stream: now, earliest, seconds since the epoch (default: now)",
    )  # fmt: skip
    _add(
        group, "give_up", type=_number(0), default=300.0, metavar="SECONDS",
        help="stop retrying a live source or an endpoint after SECONDS without a connection (default: 300)",
    )  # fmt: skip


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    _add(group, "device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    _add(
        group, "precision", default="float32", choices=["auto", "float32", "bfloat16", "float16"],
        help="precision of the network; auto: selected by device (default: float32)",
    )  # fmt: skip
    _add(group, "runtime", metavar="NAME", help="inference runtime, as in `pspnet predict` (default: its default)")
    _add(
        group, "jpeg_quality", type=_integer(1, 100), default=90, metavar="N",
        help="JPEG quality of frames for --endpoint (default: 90)",
    )  # fmt: skip
    _add(
        group, "classes", metavar="NAMES",
        help=f"class names for --endpoint, whose responses have none: {', '.join(NAMED_CLASS_SETS)}, or a,b,c",
    )  # fmt: skip
    _add(group, "region", help="AWS region, for endpoint names, s3:// and kvs://")
    _add(group, "profile", help="profile of the AWS configuration")
    _add(group, "aws_endpoint", metavar="URL", help="endpoint URL of an S3 and Kinesis Video emulator")


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("delivery")
    _add(
        group,
        "opacity",
        type=_number(0, 1),
        default=0.5,
        metavar="X",
        help="overlay opacity, 0 to 1 (default: 0.5)",
    )
    _add(group, "legend", action="store_true", help="add a class legend to overlays")
    _add(
        group, "spill", type=Path, default=Path("pspnet-spill"), metavar="DIR",
        help="folder for items that a failing sink does not accept; created on demand (default: pspnet-spill)",
    )  # fmt: skip
    _add(
        group, "spill_bytes", type=_integer(0), default=2**30, metavar="N",
        help="maximum size of the spill folder for each sink (default: 1073741824)",
    )  # fmt: skip
    _add(
        group, "grace", type=_number(0), default=30.0, metavar="SECONDS",
        help="grace period of a failing sink after the end of the stream (default: 30)",
    )  # fmt: skip
    _add(group, "sink_setting", action="append", default=[], metavar="NAME=VALUE", help="additional setting of a sink")
    _add(group, "summary", type=Path, metavar="FILE", help="write the statistics as JSON at the end")
    _add(group, "quiet", action="store_true", help="no status line while running")


def _number(least: float, most: float = math.inf) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    read.__name__ = f"number of at least {least:g}" if most == math.inf else f"number from {least:g} to {most:g}"
    return read


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise ValueError(text)
        return value

    read.__name__ = f"integer of at least {least}" if most is None else f"integer from {least} to {most}"
    return read


def stream_command(arguments: argparse.Namespace) -> int:
    """Run a stream until its source ends, or until Ctrl-C or SIGTERM; return the exit code."""
    from pspnet.stream.console import Console
    from pspnet.stream.streaming import StreamSettings, is_complete, run_stream
    from pspnet.system.signals import StopRequest

    values = {item.name: getattr(arguments, item.name) for item in fields(StreamSettings) if item.name in arguments}
    values["rate"] = _read_rate(arguments.rate)
    settings = StreamSettings(**values, sink_settings=_read_settings(arguments.sink_setting))
    with StopRequest(_STOP_MESSAGE, _EXIT_MESSAGE, repeat_seconds=0.5) as stop:
        summary = run_stream(settings, lambda: _open_model(arguments), stop.is_set, Console(arguments.quiet))
    return stop.exit_code if stop else int(not is_complete(summary))


def _open_model(arguments: argparse.Namespace) -> Model:
    if arguments.endpoint is not None:
        from pspnet.stream.endpoint_model import EndpointModel
        from sagemaker_entry import EndpointPredictor

        client = EndpointPredictor(
            arguments.endpoint, region=arguments.region, profile=arguments.profile, retries=0, timeout=30.0
        )
        return EndpointModel(client, _read_classes(arguments.classes), arguments.jpeg_quality)
    if arguments.classes is not None:
        raise ConfigError("--classes: a model directory has its own class names; omit --classes.")
    from pspnet.stream.model import LocalModel
    from pspnet.system.device import choose_device
    from pspnet.system.precision import choose_precision

    device = choose_device(arguments.device)
    dtype = choose_precision(arguments.precision, device).dtype
    options = {} if arguments.runtime is None else {"runtime": arguments.runtime}
    return LocalModel.load(arguments.model, str(device), dtype=dtype, **options)


def _read_rate(text: str | None) -> float | str | None:
    """Read None, "own" or frames per second."""
    if text is None or text == "own":
        return text
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1000:
            return float(text)
    raise ConfigError(f"--rate: found {text!r}; expected own, or frames per second above 0 up to 1000.")


def _read_settings(texts: Sequence[str]) -> dict[str, str]:
    wrong = [text for text in texts if not text.partition("=")[0] or "=" not in text]
    if wrong:
        raise ConfigError(f"--sink_setting: found {wrong[0]!r}; expected NAME=VALUE.")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def _read_classes(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    return NAMED_CLASS_SETS.get(text) or tuple(name.strip() for name in text.split(","))
