"""Sink factory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pspnet.config.values import nearest
from pspnet.errors import ConfigError
from pspnet.stream.sinks.base import SETTING_NAMES, Sink, SinkContext, SinkError, without_secrets
from pspnet.stream.sinks.mask_files import FolderSink
from pspnet.stream.sinks.overlay import OverlayVideoSink
from pspnet.stream.sinks.s3 import S3Sink
from pspnet.stream.sinks.stdout import StdoutSink
from pspnet.stream.sinks.web import WebSink
from pspnet.stream.sinks.webhook import WebhookSink
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


def check_sinks(texts: Sequence[str]) -> None:
    """Raise ConfigError for duplicate and conflicting sinks, before any is opened."""
    doubled = [text for text in dict.fromkeys(texts) if texts.count(text) > 1]
    if doubled:
        raise ConfigError(f"--to: {without_secrets(doubled[0])} is given twice; give every sink once.")
    if "-" in texts and "png:-" in texts:
        raise ConfigError("--to: - and png:- both write to standard output; choose one of them.")


def check_sink_settings(settings: Iterable[str]) -> None:
    """Raise ConfigError for a setting that no sink has."""
    for name in settings:
        if name not in SETTING_NAMES:
            like = nearest(name, SETTING_NAMES)
            hint = f"did you mean {like}?" if like else f"expected one of {', '.join(SETTING_NAMES)}."
            raise ConfigError(f"--sink_setting: no sink has the setting {name!r}; {hint}")


def open_sinks(texts: Sequence[str], context: SinkContext, opened: ExitStack) -> list[Sink]:
    """Open sinks; `opened` closes them if a later part of the stream cannot be opened.

    Raises as open_sink(), and ConfigError for two sinks with one name, which would share spill folder and summary.
    """
    sinks: list[Sink] = []
    for text in texts:
        sink = open_sink(text, context)
        opened.callback(_close_unused, sink, context.report)
        if any(other.name == sink.name for other in sinks):
            raise ConfigError(f"--to: {sink.name} is given twice, in different spellings; give every sink once.")
        sinks.append(sink)
    return sinks


def _close_unused(sink: Sink, report: Callable[[str], None]) -> None:
    """Close a sink because another part could not be opened; errors of closing are only reported."""
    try:
        sink.close()
    except SinkError as error:
        report(str(error))
