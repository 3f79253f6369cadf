"""Source protocol, options and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pspnet.errors import PspnetError
from pspnet.masks.frames import Frame


class SourceError(PspnetError):
    """A source cannot be opened, or failed permanently before its end."""


class Source(Protocol):
    """Source of frames, read by one thread.

    live: frames arrive in real time, independent of the reader.
    rate: frames per second; None if unknown.
    """

    live: bool
    rate: float | None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order. Broken frames are counted and skipped. Raises SourceError."""
        ...

    def close(self) -> None:
        """End frames() soon; called from another thread."""
        ...


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source.

    rate: frames per second of a folder, or requested from a camera.
    size: "WIDTHxHEIGHT" requested from a camera.
    start: start of a stored stream: "now", "earliest", or seconds since the epoch.
    region, profile: AWS region and profile; default: from the environment or the AWS configuration.
    aws_endpoint: endpoint URL that replaces that of AWS, for tests and local emulators.
    give_up: seconds without a connection after which a live source raises SourceError.
    report: called with messages for the user, such as a lost connection.
    count: called with the name of a counter to increment: "broken" for an undecodable frame, "reconnected".
    """

    rate: float | None = None
    size: str | None = None
    start: str = "now"
    region: str | None = None
    profile: str | None = None
    aws_endpoint: str | None = None
    give_up: float = 300.0
    report: Callable[[str], None] = lambda _: None
    count: Callable[[str], None] = lambda _: None
