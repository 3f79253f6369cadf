"""Sources of video files, cameras and URLs through PyAV, and of image folders.

Legend: H, W image height and width.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.data.io.images import IMAGE_SUFFIXES, read_image
from pspnet.errors import DataError
from pspnet.masks.frames import Frame
from pspnet.stream.sources.base import Source, SourceError, SourceOptions
from pspnet.system.backoff import Backoff
from pspnet.system.optional_packages import require_packages

_OPEN_SECONDS, _READ_SECONDS = 15.0, 5.0  # timeouts of a connection
_FOLDER_RATE = 10.0  # frames per second for the time stamps of a folder without --rate
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp")
_REPORTED_BROKEN = 3


class _Decoder:
    """Decoder of successive containers of one source; broken frames are counted and skipped.

    Frame numbers and times continue across containers.
    """

    def __init__(self, source: str, options: SourceOptions, closed: threading.Event) -> None:
        self._source, self._options, self._closed = source, options, closed
        self.index = 0
        self._broken = 0
        self._last = 0.0  # the last time stamp

    def frames(self, container: Any, began: float) -> Iterator[Frame]:
        """Yield all frames of a container. began: time stamp of its first frame. Raises av.error.FFmpegError."""
        stream = container.streams.video[0]
        first: float | None = None
        rate = float(stream.average_rate or 0) or _FOLDER_RATE
        for packet in container.demux(stream):
            if self._closed.is_set():
                return
            for picture in self._decode(packet):
                image = picture.to_ndarray(format="rgb24")  # (H, W, 3)
                seconds = picture.time
                if first is None:
                    first = seconds or 0.0
                stamp = began + seconds - first if seconds is not None else self._last + 1 / rate
                self._last = stamp
                yield Frame(self.index, image, time.time(), time.monotonic(), stamp)
                self.index += 1

    @property
    def last(self) -> float:
        """Time stamp of the last frame."""
        return self._last

    def _decode(self, packet: Any) -> Iterator[Any]:
        import av

        try:
            pictures = packet.decode()
        except av.error.FFmpegError as error:
            self.broken(str(error))
            return
        for picture in pictures:
            if picture.is_corrupt:
                self.broken("the decoder marked it as corrupt")
            else:
                yield picture

    def truncated(self, error: BaseException) -> SourceError:
        """Return the error for a file that cannot be read to its end."""
        where = f"after frame {self.index - 1}" if self.index else "before its first frame"
        return SourceError(f"{self._source}: reading failed {where} ({_reason(error)}).")

    def broken(self, reason: str) -> None:
        """Count a frame that cannot be decoded; the first few are reported."""
        self._broken += 1
        self._options.count("broken")
        if self._broken <= _REPORTED_BROKEN:
            more = " More broken frames are only counted." if self._broken == _REPORTED_BROKEN else ""
            self._options.report(f"{self._source}: frame {self.index} cannot be decoded ({reason}).{more}")
        self.index += 1


class FileSource:
    """Source of all frames of a video file."""

    live = False

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Raises SourceError if the file is not a video, ConfigError without PyAV."""
        require_packages("av", purpose="reading video", extra="stream")
        self._name = str(path)
        self._options = options
        self._closed = threading.Event()
        self._container = _open(self._name, {}, {})
        self.rate: float | None = _rate(self._container)

    def frames(self) -> Iterator[Frame]:
        """See Source. Raises SourceError after the last readable frame of a truncated file."""
        import av

        decoder = _Decoder(self._name, self._options, self._closed)
        try:
            yield from decoder.frames(self._container, 0.0)
        except av.error.FFmpegError as error:
            raise decoder.truncated(error) from error
        finally:
            self._container.close()

    def close(self) -> None:
        """See Source."""
        self._closed.set()


class _ConnectedSource:
    """Source with reconnection, with exponential backoff."""

    live = True

    def __init__(self, name: str, options: SourceOptions, connect: Callable[[], Any]) -> None:
        require_packages("av", purpose="reading video", extra="stream")
        self._name, self._options, self._connect = name, options, connect
        self._closed = threading.Event()
        # Connect here, so that a wrong URL is an immediate error instead of being retried.
        self._container: Any = connect()
        self.rate: float | None = _rate(self._container)

    def frames(self) -> Iterator[Frame]:
        """See Source. Raises SourceError for a truncated file, and if a live source stays disconnected."""
        import av

        decoder = _Decoder(self._name, self._options, self._closed)
        backoff = Backoff(first=0.5, longest=15.0)
        origin = time.monotonic()
        lost_since: float | None = None
        while not self._closed.is_set():
            reason = "the stream ended"
            try:
                if self._container is None:
                    self._container = self._connect()
                    self._options.count("reconnected")
                began = 0.0 if decoder.index == 0 else max(decoder.last, time.monotonic() - origin)
                for frame in decoder.frames(self._container, began):
                    if lost_since is not None:
                        self._options.report(f"{self._name}: reconnected after {time.monotonic() - lost_since:.1f} s.")
                        lost_since = None
                        backoff.reset()
                    yield frame
            except av.error.FFmpegError as error:
                reason = _reason(error)
                if not self.live and not self._closed.is_set():
                    raise decoder.truncated(error) from error
            except SourceError as error:
                reason = str(error)
            finally:
                self._disconnect()
            if not self.live or self._closed.is_set():
                return
            if lost_since is None:
                lost_since = time.monotonic()
                self._options.report(f"{self._name}: lost ({reason}); reconnecting with exponential backoff.")
            if time.monotonic() - lost_since > self._options.give_up:
                raise SourceError(
                    f"{self._name}: gave up after {self._options.give_up:.0f} s without a frame (--give_up): {reason}"
                )
            self._closed.wait(backoff.next())

    def _disconnect(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def close(self) -> None:
        """See Source. A blocking read ends within its timeout."""
        self._closed.set()


class UrlSource(_ConnectedSource):
    """Source of RTSP, RTMP, HTTP and other FFmpeg URLs. HTTP with a known length is a file, otherwise live."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        scheme = url.split("://", 1)[0].lower()
        # Over TCP: a lost UDP packet costs every frame up to the next key frame.
        settings = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
        limits = {"timeout": (_OPEN_SECONDS, _READ_SECONDS)}
        super().__init__(_without_password(url), options, lambda: _open(url, settings, limits))
        self.live = scheme in _LIVE_SCHEMES or not self._container.duration


class CameraSource(_ConnectedSource):
    """Source of a local Video4Linux camera: camera:N or /dev/videoN."""

    def __init__(self, text: str, options: SourceOptions) -> None:
        device = f"/dev/video{text.split(':', 1)[1] or 0}" if text.startswith("camera:") else text
        if not Path(device).exists():
            raise SourceError(f"{text}: no device {device}; found {', '.join(_cameras()) or 'no camera'}.")
        settings = {}
        if options.rate is not None:
            settings["framerate"] = f"{options.rate:g}"
        if options.size is not None:
            settings["video_size"] = options.size
        super().__init__(text, options, lambda: _open(device, settings, {"format": "v4l2"}))


class FolderSource:
    """Source of the images of a folder, in natural order of their names."""

    live = False

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Raises SourceError for a folder without images."""
        found = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        self._paths = sorted(found, key=_natural)
        if not self._paths:
            raise SourceError(f"{path}: no images in this folder; expected {', '.join(IMAGE_SUFFIXES)}.")
        self._options = options
        self._closed = threading.Event()
        self.rate: float | None = options.rate

    def frames(self) -> Iterator[Frame]:
        """See Source; `labels` has the file name."""
        for index, path in enumerate(self._paths):
            if self._closed.is_set():
                return
            try:
                image = read_image(path)
            except DataError as error:
                self._options.count("broken")
                self._options.report(str(error))
                continue
            stamp = index / (self.rate or _FOLDER_RATE)
            yield Frame(index, np.ascontiguousarray(image), time.time(), time.monotonic(), stamp, {"file": path.name})

    def close(self) -> None:
        """See Source."""
        self._closed.set()


class PacedSource:
    """File or folder played as a live source, at its own time stamps or a fixed rate."""

    live = True

    def __init__(self, source: Source, rate: float | None) -> None:
        """rate: frames per second; None for the source's own time stamps."""
        self._source, self._rate = source, rate
        self.rate = rate if rate is not None else source.rate
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """See Source. `captured` and `arrived` are the times at which a frame was due."""
        origin: float | None = None
        offset = 0.0
        for frame in self._source.frames():
            stamp = frame.timestamp if self._rate is None else frame.index / self._rate
            if origin is None:
                origin, offset = time.monotonic() - stamp, time.time() - time.monotonic()
            due = origin + stamp
            if self._closed.wait(max(0.0, due - time.monotonic())):
                return
            yield Frame(frame.index, frame.image, due + offset, due, stamp, frame.labels)

    def close(self) -> None:
        """See Source."""
        self._closed.set()
        self._source.close()


def _open(name: str, settings: dict[str, str], keywords: dict[str, Any]) -> Any:
    """Open an av container with a video stream. Raises SourceError."""
    import av

    try:
        container = av.open(name, options=settings, **keywords)
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(f"{_without_password(name)}: cannot be opened as video ({_reason(error)}).") from error
    if not container.streams.video:
        container.close()
        raise SourceError(f"{_without_password(name)}: has no video stream.")
    # Frame threads would delay the output by as many frames as there are threads.
    container.streams.video[0].thread_type = "SLICE"
    return container


def _rate(container: Any) -> float | None:
    rate = container.streams.video[0].average_rate
    return float(rate) if rate else None


def _reason(error: BaseException) -> str:
    """Return FFmpeg's message without the URL, which may contain a password."""
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(str(message).split()).rstrip(".") or type(error).__name__


def _without_password(url: str) -> str:
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)


def _cameras() -> list[str]:
    return sorted((str(path) for path in Path("/dev").glob("video*")), key=lambda name: (len(name), name))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part.lower()) for part in parts if part]
