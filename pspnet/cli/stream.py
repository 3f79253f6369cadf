"""`pspnet stream`: masks of a video file, a camera or a stream, as they come, to several places at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.errors import ConfigError
from pspnet.system.atomic_files import atomic_write

if TYPE_CHECKING:
    from pspnet.stream.console import Console
    from pspnet.stream.delivery import Delivery
    from pspnet.stream.model import Model
    from pspnet.stream.pipeline import Pipeline
    from pspnet.stream.sinks.base import Sink, SinkContext
    from pspnet.stream.sources.base import Source
    from pspnet.stream.statistics import Statistics

_SINKS = """Sinks:
  DIR, s3://BUCKET/PREFIX   the masks, compact, with an index
  FILE.mp4, FILE.mkv        a video of the frames under their masks' colours
  window, web[:PORT]        the same, live: in a window; in a browser on this machine
  -, png:-                  masks to standard output: with a line of JSON before each; PNG files alone
  http(s)://...             a request for every mask
docs/stream.md says more."""


def register(subparsers: Any) -> None:
    """Add the command to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "stream",
        help="masks of a video, a camera or a stream, live",
        description="Turn the frames of a source into masks as they come, and deliver them to several places at once.",
        epilog=_SINKS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE",
        help="a video file, a folder of frames, camera:0, /dev/video0, rtsp://..., http(s)://..., kvs://STREAM",
    )  # fmt: skip
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="MODEL_DIR", help="what training wrote to model_dir")
    model.add_argument("--endpoint", metavar="NAME_OR_URL", help="a SageMaker endpoint, or the address of a server")
    parser.add_argument("--to", action="extend", nargs="+", required=True, metavar="SINK", help="where masks go")
    _add_flow(parser)
    _add_model(parser)
    _add_delivery(parser)
    parser.set_defaults(run=run_stream)


def _add(parser: Any, name: str, **keywords: Any) -> None:
    parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), dest=name, **keywords)


def _add_flow(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which frames")
    _add(
        group, "policy", default="auto", choices=["auto", "latest", "all"],
        help="latest: drop what is late; all: every frame; auto: latest for live sources (default: auto)",
    )  # fmt: skip
    _add(
        group, "rate", metavar="own|N",
        help="play a file or folder as if it were live, at its own rate or N frames a second; asked of a camera",
    )  # fmt: skip
    _add(group, "size", metavar="WxH", help="frame size to ask a camera for")
    _add(group, "max_frames", type=_whole(1), metavar="N", help="stop after N frames")
    _add(
        group, "start", default="now", metavar="WHEN",
        help="of a kvs:// stream: now, earliest, seconds since the epoch (default: now)",
    )  # fmt: skip
    _add(
        group, "give_up", type=_number(0), default=300.0, metavar="SECONDS",
        help="without a connection, after which a live source or an endpoint is given up (default: 300)",
    )  # fmt: skip


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    _add(group, "device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    _add(
        group, "precision", default="float32", choices=["auto", "float32", "bfloat16", "float16"],
        help="number format of the network; auto by device (default: float32)",
    )  # fmt: skip
    _add(group, "runtime", metavar="NAME", help="what runs the network, as in `pspnet predict` (default: its default)")
    _add(
        group, "jpeg_quality", type=_whole(1, 100), default=90, metavar="N",
        help="of frames for --endpoint (default: 90)",
    )  # fmt: skip
    _add(
        group, "classes", metavar="NAMES",
        help=f"class names for --endpoint, whose answers hold none: {', '.join(NAMED_CLASS_SETS)}, or a,b,c",
    )  # fmt: skip
    _add(group, "region", help="AWS region, for names of endpoints, s3:// and kvs://")
    _add(group, "profile", help="profile of the AWS configuration")
    _add(group, "aws_endpoint", metavar="URL", help="address of a stand-in for AWS's S3 and Kinesis Video")


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("delivery")
    _add(group, "opacity", type=_number(0, 1), default=0.5, metavar="X", help="of the colours, 0 to 1 (default: 0.5)")
    _add(group, "legend", action="store_true", help="list the classes below overlays")
    _add(
        group, "spill", type=Path, default=Path("pspnet-spill"), metavar="DIR",
        help="keeps what a failing sink does not take; made when it is needed (default: pspnet-spill)",
    )  # fmt: skip
    _add(
        group, "spill_bytes", type=_whole(0), default=2**30, metavar="N",
        help="that the spill folder may grow to, for each sink (default: 1073741824)",
    )  # fmt: skip
    _add(
        group, "grace", type=_number(0), default=30.0, metavar="SECONDS",
        help="after the end, for a sink that fails (default: 30)",
    )  # fmt: skip
    _add(group, "sink_setting", action="append", default=[], metavar="NAME=VALUE", help="further setting of a sink")
    _add(group, "summary", type=Path, metavar="FILE", help="gets all numbers as JSON at the end")
    _add(group, "quiet", action="store_true", help="no line of numbers while running")


def _number(least: float, most: float = math.inf) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    read.__name__ = f"number of at least {least:g}" if most == math.inf else f"number from {least:g} to {most:g}"
    return read


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise ValueError(text)
        return value

    read.__name__ = f"whole number of at least {least}" if most is None else f"whole number from {least} to {most}"
    return read


def run_stream(arguments: argparse.Namespace) -> int:
    """Run until the source ends, or until Ctrl-C or SIGTERM; then deliver what was accepted."""
    from pspnet.stream.console import Console
    from pspnet.stream.sinks.base import check_sinks
    from pspnet.stream.statistics import Statistics, final_report
    from pspnet.system.stopping import StopSignals

    console, statistics = Console(arguments.quiet), Statistics()
    rate, sink_settings = _read_rate(arguments.rate), _read_settings(arguments.sink_setting)
    check_sinks(arguments.to)
    with StopSignals() as signals:
        pipeline = _build(arguments, rate, sink_settings, console, statistics)
        failure = _run_pipeline(pipeline, lambda: console.tick(statistics.line), signals)
        summary = statistics.summary()
        console.say(final_report(summary))
        if arguments.summary is not None:
            with atomic_write(arguments.summary) as temporary:
                temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if failure is not None:
        raise failure
    return signals.exit_code or _incomplete(summary)


def _build(
    arguments: argparse.Namespace,
    rate: float | str | None,
    sink_settings: dict[str, str],
    console: Console,
    statistics: Statistics,
) -> Pipeline:
    """Open everything; where one part cannot be opened, the others are closed again."""
    from pspnet.stream.pipeline import Pipeline, PipelineSettings
    from pspnet.stream.sinks.base import open_sinks

    with contextlib.ExitStack() as opened:
        local = Path(arguments.source).exists() and not arguments.source.startswith("/dev/")
        # A file that is missing is said before the model is loaded, but a camera is not opened before it is wanted.
        source = _open_source(arguments, rate, console, statistics, opened) if local else None
        model = _open_model(arguments)
        opened.callback(model.close)
        context = _context(arguments, model, source, statistics, console, sink_settings)
        sinks = open_sinks(arguments.to, context, opened)
        if source is None:
            source = _open_source(arguments, rate, console, statistics, opened)
        latest = arguments.policy == "latest" or (arguments.policy == "auto" and source.live)
        deliveries = [_delivery(arguments, sink, latest, statistics, console) for sink in sinks]
        opened.pop_all()  # from here on the pipeline closes what is open
    settings = PipelineSettings(latest, arguments.max_frames, arguments.grace, arguments.give_up)
    return Pipeline(source, model, deliveries, statistics, settings, console.say)


def _incomplete(summary: dict[str, Any]) -> int:
    """1 where a frame that was taken has no mask, or a mask was not delivered."""
    missing = any(sink["lost"] or sink["on_disk"] or sink["unfinished"] for sink in summary["sinks"].values())
    return 1 if missing or summary["failed"] else 0


def _run_pipeline(pipeline: Pipeline, tick: Callable[[], None], signals: Callable[[], bool]) -> Exception | None:
    """Run the stream; the error that ended it, after everything else has been delivered and said."""
    try:
        pipeline.run(signals, tick)
    except Exception as error:
        return error
    return None


def _open_source(
    arguments: argparse.Namespace,
    rate: float | str | None,
    console: Console,
    statistics: Statistics,
    opened: contextlib.ExitStack,
) -> Source:
    from pspnet.stream.sources.base import SourceOptions, open_source
    from pspnet.stream.sources.video import PacedSource

    options = SourceOptions(
        rate=rate if isinstance(rate, float) else None,
        size=arguments.size,
        start=arguments.start,
        region=arguments.region,
        profile=arguments.profile,
        aws_endpoint=arguments.aws_endpoint,
        give_up=arguments.give_up,
        report=console.say,
        count=statistics.count,
    )
    source = open_source(arguments.source, options)
    opened.callback(source.close)
    if rate is None or source.live:
        return source
    return PacedSource(source, options.rate)


def _open_model(arguments: argparse.Namespace) -> Model:
    if arguments.endpoint is not None:
        from pspnet.stream.endpoint_model import EndpointModel
        from sagemaker_entry import EndpointPredictor

        client = EndpointPredictor(
            arguments.endpoint, region=arguments.region, profile=arguments.profile, retries=0, timeout=30.0
        )
        return EndpointModel(client, _read_classes(arguments.classes), arguments.jpeg_quality)
    if arguments.classes is not None:
        raise ConfigError("--classes: a model directory has its own class names; leave this out.")
    from pspnet.stream.model import LocalModel
    from pspnet.system.device import choose_device, choose_precision

    device = choose_device(arguments.device)
    dtype = choose_precision(arguments.precision, device).dtype
    options = {} if arguments.runtime is None else {"runtime": arguments.runtime}
    return LocalModel.load(arguments.model, str(device), dtype=dtype, **options)


def _context(
    arguments: argparse.Namespace,
    model: Model,
    source: Source | None,
    statistics: Statistics,
    console: Console,
    settings: dict[str, str],
) -> SinkContext:
    from pspnet.stream.sinks.base import SinkContext

    return SinkContext(
        class_names=model.class_names,
        palette=model.palette,
        source=arguments.source,
        rate=None if source is None else source.rate,
        opacity=arguments.opacity,
        legend=arguments.legend,
        region=arguments.region,
        profile=arguments.profile,
        aws_endpoint=arguments.aws_endpoint,
        report=console.say,
        status=statistics.summary,
        settings=settings,
    )


def _delivery(
    arguments: argparse.Namespace, sink: Sink, latest: bool, statistics: Statistics, console: Console
) -> Delivery:
    from pspnet.stream.delivery import Delivery, DeliveryLimits
    from pspnet.stream.spill import Spill, folder_name

    # Where every frame counts, a slow sink holds up the source, and nothing goes to disk because of it.
    limits = DeliveryLimits(patience=2.0 if latest else None, grace=arguments.grace)
    folder = arguments.spill / folder_name(sink.name)
    spill = Spill(folder, arguments.spill_bytes, sink.wants_images) if sink.durable else None
    return Delivery(sink, spill, statistics.sink(sink.name), console.say, limits)


def _read_rate(text: str | None) -> float | str | None:
    """None, "own" or frames a second."""
    if text is None or text == "own":
        return text
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1000:
            return float(text)
    raise ConfigError(f"--rate: found {text!r}; expected own, or frames a second above 0 up to 1000.")


def _read_settings(texts: Sequence[str]) -> dict[str, str]:
    from pspnet.config.values import nearest
    from pspnet.stream.sinks.base import SETTING_NAMES

    wrong = [text for text in texts if not text.partition("=")[0] or "=" not in text]
    if wrong:
        raise ConfigError(f"--sink_setting: found {wrong[0]!r}; expected NAME=VALUE.")
    settings = {text.partition("=")[0]: text.partition("=")[2] for text in texts}
    for name in settings:
        if name not in SETTING_NAMES:
            like = nearest(name, SETTING_NAMES)
            hint = f"did you mean {like}?" if like else f"there are {', '.join(SETTING_NAMES)}."
            raise ConfigError(f"--sink_setting: no sink has the setting {name!r}; {hint}")
    return settings


def _read_classes(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    return NAMED_CLASS_SETS.get(text) or tuple(name.strip() for name in text.split(","))
