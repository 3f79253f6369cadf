"""Run of one stream from its settings to its summary; implements `pspnet stream`.

settings = StreamSettings(source="drive.mp4", to=["masks/", "overlay.mp4"])
summary = run_stream(settings, lambda: LocalModel.load(Path("runs/cars/model")))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pspnet.stream.console import Console
from pspnet.stream.delivery import Delivery, DeliveryLimits
from pspnet.stream.model import Model
from pspnet.stream.pipeline import Pipeline, PipelineSettings
from pspnet.stream.sinks.base import Sink, SinkContext
from pspnet.stream.sinks.factory import open_sinks
from pspnet.stream.sinks.s3 import S3Sink
from pspnet.stream.sources.base import Source, SourceOptions
from pspnet.stream.sources.factory import open_source
from pspnet.stream.sources.video import PacedSource
from pspnet.stream.spill_queue import SpillQueue, folder_name
from pspnet.stream.statistics import Statistics, final_report
from pspnet.stream.stream_settings import StreamSettings
from pspnet.system.atomic_files import atomic_write


def run_stream(
    settings: StreamSettings,
    open_model: Callable[[], Model],
    stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run until the source ends or `stop` returns True, deliver what was accepted and return the statistics.

    open_model: called once, after a file or folder was opened, since loading a model is slow.

    Raises PspnetError if a part cannot be opened, and the error that ended the source or the model; the latter after
    the statistics were reported and written.
    """
    console = Console() if console is None else console
    statistics = Statistics()
    pipeline = _build(settings, open_model, console, statistics)
    try:
        pipeline.run(stop, lambda: console.update_status(statistics.line))
    finally:
        summary = statistics.summary()
        console.print(final_report(summary))
        if settings.summary is not None:
            with atomic_write(settings.summary) as temporary:
                temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def is_complete(summary: Mapping[str, Any]) -> bool:
    """Return whether every accepted frame got a mask and every mask was delivered."""
    missing = any(sink["lost"] or sink["on_disk"] or sink["unfinished"] for sink in summary["sinks"].values())
    return not (missing or summary["failed"])


def _build(
    settings: StreamSettings, open_model: Callable[[], Model], console: Console, statistics: Statistics
) -> Pipeline:
    """Open all parts; close those that are open if one cannot be opened."""
    with ExitStack() as opened:
        local = Path(settings.source).exists() and not settings.source.startswith("/dev/")
        # A missing file is reported before the model is loaded; a camera is opened as late as possible.
        source = _open_source(settings, console, statistics, opened) if local else None
        model = open_model()
        opened.callback(model.close)
        context = SinkContext(
            model.class_names, model.palette, settings.source, None if source is None else source.rate, settings.spill,
            settings.spill_bytes, settings.opacity, settings.legend, settings.region, settings.profile,
            settings.aws_endpoint, report=console.print, status=statistics.summary, settings=settings.sink_settings(),
        )  # fmt: skip
        sinks = open_sinks(settings.to, context, opened)
        if source is None:
            source = _open_source(settings, console, statistics, opened)
        latest = settings.policy == "latest" or (settings.policy == "auto" and source.live)
        deliveries = [_delivery(settings, sink, latest, statistics, console) for sink in sinks]
        opened.pop_all()  # from here on the pipeline closes the parts
    limits = PipelineSettings(latest, settings.max_frames, settings.grace, settings.give_up)
    return Pipeline(source, model, deliveries, statistics, limits, console.print)


def _open_source(settings: StreamSettings, console: Console, statistics: Statistics, opened: ExitStack) -> Source:
    rate = settings.rate if isinstance(settings.rate, float) else None
    options = SourceOptions(
        rate, settings.size, settings.start, settings.region, settings.profile, settings.aws_endpoint, settings.give_up,
        report=console.print, count=statistics.count,
    )  # fmt: skip
    source = open_source(settings.source, options)
    opened.callback(source.close)
    if settings.rate is None or source.live:
        return source
    return PacedSource(source, rate)


def _delivery(settings: StreamSettings, sink: Sink, latest: bool, statistics: Statistics, console: Console) -> Delivery:
    # Under the policy "all", a slow sink blocks the source instead of spilling to disk. A full disk is tried more often
    # than a server.
    longest = 30.0 if sink.spills else 2.0
    limits = DeliveryLimits(patience=2.0 if latest else None, grace=settings.grace, longest_pause=longest)
    counts = statistics.sink(sink.name)
    folder = settings.spill / folder_name(sink.name)
    spill = SpillQueue(folder, settings.spill_bytes, counts, console.print) if sink.spills else None
    uploader = sink.uploader if isinstance(sink, S3Sink) else None
    return Delivery(sink, spill, counts, console.print, limits, uploader)
