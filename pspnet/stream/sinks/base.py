"""Where masks go: what every sink offers, and which one a text on the command line means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pspnet.classes import voc_palette
from pspnet.errors import ConfigError, PspnetError
from pspnet.masks.frames import MaskedFrame


class SinkError(PspnetError):
    """A sink that did not take an item. `temporary`: whether the same item may be taken later."""

    def __init__(self, message: str, temporary: bool) -> None:
        self.temporary = temporary
        super().__init__(message)


class SinkClosed(SinkError):
    """Nobody is there to take anything any more, by a person's wish: a closed window or pipe. Nothing is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, temporary=False)


class Sink(Protocol):
    """A place for masks. All methods are called by one thread of its own.

    name: how messages and the summary call it; also the name of its folder among the spilled items.
    durable: what it does not take is kept on disk and delivered later; False for a display, which shows the present.
    wants_images: whether it uses `item.frame.image`. If not, an item that comes back from disk has a black one.
    """

    name: str
    durable: bool
    wants_images: bool

    def write(self, item: MaskedFrame) -> None:
        """Take the next item. Where this raises SinkError, the item was not taken and comes again."""
        ...

    def flush(self) -> None:
        """Bring everything taken so far to where it belongs. Raises SinkError, and may be called again after it."""
        ...

    def close(self) -> None:
        """Release everything, at once. The last flush() was before."""
        ...


def _nothing(_text: str) -> None:
    return None


def _no_status() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class SinkContext:
    """What the sinks of one stream have in common.

    class_names, palette: names in the order of the ids, and (256, 3) uint8 colours.
    source: the source as it was named on the command line.
    rate: frames a second of the source, if known.
    opacity, legend: how overlays are drawn: 0 shows the frame, 1 the colours alone; with a list of the classes.
    region, profile, aws_endpoint: as in SourceOptions.
    report: gets a sentence for the user.
    status: the statistics so far, fit for JSON.
    settings: further settings of single sinks, by their names on the command line.
    """

    class_names: tuple[str, ...] = ()
    palette: np.ndarray = field(default_factory=voc_palette)
    source: str = ""
    rate: float | None = None
    opacity: float = 0.5
    legend: bool = False
    region: str | None = None
    profile: str | None = None
    aws_endpoint: str | None = None
    report: Callable[[str], None] = _nothing
    status: Callable[[], dict[str, Any]] = _no_status
    settings: Mapping[str, str] = field(default_factory=dict)


VIDEO_SUFFIXES = (".mp4", ".mkv")
SETTING_NAMES = (
    "key_every", "mask_encoding", "s3_spool", "segment_frames", "segment_seconds", "webhook_headers", "webhook_send",
    "webhook_timeout",
)  # fmt: skip
"""All of SinkContext.settings; docs/mask_format.md says what they mean."""


def without_secrets(text: str) -> str:
    """A sink's text without an address's user, password and query, which may hold a key."""
    if not text.startswith(("http://", "https://")):
        return text
    return re.sub(r"//[^/]*@", "//***@", re.split(r"[?#]", text, maxsplit=1)[0])


def open_sink(text: str, context: SinkContext) -> Sink:
    """The sink that a text means: s3://BUCKET/PREFIX, http(s)://..., FILE.mp4 or .mkv, window, web[:PORT], -, a folder.

    A folder called `window` is written ./window. Raises SinkError or ConfigError where it cannot be opened.
    """
    if text.startswith("s3://"):
        from pspnet.stream.sinks.mask_files import S3Sink

        return S3Sink(text, context)
    if text.startswith(("http://", "https://")):
        from pspnet.stream.sinks.webhook import WebhookSink

        return WebhookSink(text, context)
    if text in ("-", "png:-"):
        from pspnet.stream.sinks.stdout import StdoutSink

        return StdoutSink(context, bare=text == "png:-")
    if text == "window":
        from pspnet.stream.sinks.window import WindowSink

        return WindowSink(context)
    if text == "web" or text.startswith("web:"):
        from pspnet.stream.sinks.web import WebSink

        return WebSink(text, context)
    if text.lower().endswith(VIDEO_SUFFIXES) and not text.endswith("/"):
        from pspnet.stream.sinks.overlay import OverlayVideoSink

        return OverlayVideoSink(Path(text), context)
    from pspnet.stream.sinks.mask_files import FolderSink

    return FolderSink(Path(text), context)


def check_sinks(texts: Sequence[str]) -> None:
    """Refuse sinks that cannot go together, before any is opened. Raises ConfigError."""
    doubled = [text for text in dict.fromkeys(texts) if texts.count(text) > 1]
    if doubled:
        raise ConfigError(f"--to: {without_secrets(doubled[0])} is named twice; name every sink once.")
    if "-" in texts and "png:-" in texts:
        raise ConfigError("--to: - and png:- both write to standard output; choose one of them.")


def open_sinks(texts: Sequence[str], context: SinkContext, opened: ExitStack) -> list[Sink]:
    """The sinks that texts mean. `opened` closes them where a later part of the stream cannot be opened.

    Raises as open_sink(), and ConfigError for two of one name: they would share a spill folder and a place in the
    summary.
    """
    sinks: list[Sink] = []
    for text in texts:
        sink = open_sink(text, context)
        opened.callback(_close_unused, sink, context.report)
        if any(other.name == sink.name for other in sinks):
            raise ConfigError(f"--to: {sink.name} is named twice, in different words; name every sink once.")
        sinks.append(sink)
    return sinks


def _close_unused(sink: Sink, report: Callable[[str], None]) -> None:
    """Close a sink because something else could not be opened: that is the error, and this sink's is only said."""
    try:
        sink.close()
    except SinkError as error:
        report(str(error))
