"""Sink factory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from pspnet.config.problems import Problem
from pspnet.errors import PspnetError
from pspnet.masks.storage import split_uri
from pspnet.stream.sinks.base import Sink, SinkContext, SinkError, without_secrets
from pspnet.stream.sinks.mask_files import FolderSink
from pspnet.stream.sinks.overlay import OverlayVideoSink
from pspnet.stream.sinks.s3 import S3Sink
from pspnet.stream.sinks.stdout import StdoutSink
from pspnet.stream.sinks.web import WebSink, read_port
from pspnet.stream.sinks.webhook import WebhookSink, split_url
from pspnet.stream.sinks.window import WindowSink

VIDEO_SUFFIXES = (".mp4", ".mkv")


def open_sink(text: str, context: SinkContext) -> Sink:
    """Open s3://BUCKET/PREFIX, http(s)://..., FILE.mp4 or .mkv, window, web[:PORT], -, png:- or a folder.

    A folder named `window` is written ./window. Raises SinkError or ConfigError if it cannot be opened.
    """
    if text.startswith("s3://"):
        return S3Sink(text, context)
    if text.startswith(("http://", "https://")):
        return WebhookSink(text, context)
    if text in ("-", "png:-"):
        return StdoutSink(context, bare=text == "png:-")
    if text == "window":
        return WindowSink(context)
    if text == "web" or text.startswith("web:"):
        return WebSink(text, context)
    if text.lower().endswith(VIDEO_SUFFIXES) and not text.endswith("/"):
        return OverlayVideoSink(Path(text), context)
    return FolderSink(Path(text), context)


def check_sinks(texts: Sequence[str]) -> Iterator[Problem]:
    """Malformed sinks, and two sinks with one destination, before any is opened."""
    known: dict[str, str] = {}
    for text in texts:
        shown = without_secrets(text)
        try:
            destination = _destination(text)
        except PspnetError as error:
            yield Problem("to", f"found {shown}", str(error).removeprefix(f"{shown}: ").rstrip("."))
            continue
        if destination in known:
            yield Problem("to", f"found {known[destination]} and {shown}, which are one sink", "give every sink once")
        known[destination] = shown


def _destination(text: str) -> str:
    """Return one text for all spellings of a sink. Raises PspnetError for a malformed one."""
    if text.startswith("s3://"):
        return "s3://{}/{}".format(*split_uri(text))
    if text.startswith(("http://", "https://")):
        return split_url(text)[1]
    if text in ("-", "png:-"):
        return "standard output"
    if text == "web" or text.startswith("web:"):
        return f"web:{read_port(text)}"
    return text if text == "window" else os.path.abspath(text)


def open_sinks(texts: Sequence[str], context: SinkContext, opened: ExitStack) -> list[Sink]:
    """Open sinks; `opened` closes them if a later part of the stream cannot be opened.

    Raises as open_sink().
    """
    sinks: list[Sink] = []
    for text in texts:
        sink = open_sink(text, context)
        opened.callback(_close_unused, sink, context.report)
        sinks.append(sink)
    return sinks


def _close_unused(sink: Sink, report: Callable[[str], None]) -> None:
    """Close a sink because another part could not be opened; errors of closing are only reported."""
    try:
        sink.close()
    except SinkError as error:
        report(str(error))
