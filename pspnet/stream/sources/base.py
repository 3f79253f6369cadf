"""Where frames come from: what every source offers, and which one a text on the command line means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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


def open_source(text: str, options: SourceOptions) -> Source:
    """The source that a text means: kvs://STREAM, a URL, camera:N or /dev/videoN, a folder of frames or a video file.

    Raises SourceError where there is none or a package for it is missing.
    """
    if text.startswith("kvs://"):
        from pspnet.stream.sources.kinesis import KinesisSource

        return KinesisSource(text[len("kvs://") :], options)
    from pspnet.stream.sources.video import CameraSource, FileSource, FolderSource, UrlSource

    if "://" in text:
        return UrlSource(text, options)
    if text.startswith(("camera:", "/dev/video")):
        return CameraSource(text, options)
    path = Path(text)
    if path.is_dir():
        return FolderSource(path, options)
    if path.is_file():
        return FileSource(path, options)
    raise SourceError(
        f"{text}: no such file or folder; a source is a video file, a folder of frames, camera:0, /dev/video0, an "
        "address such as rtsp://HOST/PATH, or kvs://STREAM."
    )
