"""Sink protocol, context and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pspnet.classes import voc_palette
from pspnet.errors import PspnetError
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
