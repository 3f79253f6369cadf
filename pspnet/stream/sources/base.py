"""Source protocol, options and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pspnet.errors import PspnetError
from pspnet.masks.frames import Frame


class SourceError(PspnetError):
    """A source that cannot be opened, or that ended for good before its end."""


class Source(Protocol):
    """A source of frames, read by one thread.

    live: frames come at their own pace, whether anybody takes them or not.
    rate: frames a second, where the source says so.
    """

    live: bool
    rate: float | None

    def frames(self) -> Iterator[Frame]:
        """The frames in their order. Broken ones are counted and left out. Raises SourceError."""
        ...

    def close(self) -> None:
        """Called from another thread: frames() ends soon after."""
        ...


def _nothing(_text: str) -> None:
    return None


@dataclass(frozen=True)
class SourceOptions:
    """What a source may be told.

    rate: frames a second of a folder, or that a camera is asked for.
    size: "WIDTHxHEIGHT" that a camera is asked for.
    start: where a stored stream begins: "now", "earliest", or seconds since the epoch.
    region, profile: where in AWS; from the environment or the AWS configuration if not given.
    aws_endpoint: another address than AWS's own, for tests and local stand-ins.
    give_up: seconds without a connection after which a live source ends with SourceError.
    report: gets a sentence for the user, such as that a connection was lost.
    count: gets the name of what happened once more: "broken" for a frame that could not be decoded, "reconnected".
    """

    rate: float | None = None
    size: str | None = None
    start: str = "now"
    region: str | None = None
    profile: str | None = None
    aws_endpoint: str | None = None
    give_up: float = 300.0
    report: Callable[[str], None] = _nothing
    count: Callable[[str], None] = _nothing
