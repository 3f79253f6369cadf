"""Sink protocol, context and errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pspnet.classes import voc_palette
from pspnet.errors import PspnetError
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.sink_settings import SinkSettings


class SinkError(PspnetError):
    """A sink did not accept an item. `temporary`: whether a retry may succeed."""

    def __init__(self, message: str, temporary: bool) -> None:
        self.temporary = temporary
        super().__init__(message)


class SinkClosed(SinkError):
    """The user closed the window or pipe of a sink. Its items are discarded."""

    def __init__(self, message: str) -> None:
        super().__init__(message, temporary=False)


class Sink(Protocol):
    """Destination of masks. All methods are called by one thread.

    name: name in messages and the summary; also names its spill folder.
    durable: every item is delivered; False for a display, which shows the newest item.
    spills: whether items that it rejects are stored in the spill folder and delivered later, with a black image.
    """

    name: str
    durable: bool
    spills: bool

    def write(self, item: MaskedFrame) -> None:
        """Accept the next item. After SinkError the item was not accepted and may be retried."""
        ...

    def flush(self) -> None:
        """Finish open files. Raises SinkError, and can be retried."""
        ...

    def close(self) -> None:
        """Release all resources without blocking, after the last flush()."""
        ...


@dataclass(frozen=True)
class SinkContext:
    """Context shared by the sinks of one stream.

    class_names, palette: names in the order of the ids, and (256, 3) uint8 colours.
    source: the source as given on the command line.
    rate: frames per second of the source; None if unknown.
    spill, spill_bytes: folder for items that are not delivered yet, and its size limit for each sink.
    opacity: opacity of the mask in overlays, 0 to 1. legend: whether overlays list the classes.
    region, profile, aws_endpoint: as in SourceOptions.
    report: called with messages for the user.
    status: returns the current statistics as JSON types.
    settings: settings of individual sinks (--sink_setting).
    """

    class_names: tuple[str, ...] = ()
    palette: np.ndarray = field(default_factory=voc_palette)
    source: str = ""
    rate: float | None = None
    spill: Path = Path("pspnet-spill")
    spill_bytes: int = 2**30
    opacity: float = 0.5
    legend: bool = False
    region: str | None = None
    profile: str | None = None
    aws_endpoint: str | None = None
    report: Callable[[str], None] = lambda _: None
    status: Callable[[], dict[str, Any]] = dict
    settings: SinkSettings = field(default_factory=SinkSettings)


def without_secrets(text: str) -> str:
    """Remove user, password and query, which may contain a key, from a URL."""
    if not text.startswith(("http://", "https://")):
        return text
    return re.sub(r"//[^/]*@", "//***@", re.split(r"[?#]", text, maxsplit=1)[0])
