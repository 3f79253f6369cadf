"""Sink that writes an overlay video, H.264 in Matroska or MP4.

Frames keep their time stamps, so the video freezes while frames were dropped and lasts as long as the stream. If time
stamps step back, the next frames follow the last one. The file is written in fragments, of
one second in Matroska and up to 50 frames in MP4, so it can be played up to the last one after a crash.
"""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.rendering import render
from pspnet.system.optional_packages import require_packages

_TIME_BASE = Fraction(1, 1000)
_FALLBACK_RATE = 30
_BACKWARDS = 1000  # in _TIME_BASE; a larger step back in time is another clock
_SHORTEST_SIDE = 16  # px; encoders refuse smaller ones


class OverlayVideoSink:
    """Writer of FILE.mkv or FILE.mp4. An existing file is never overwritten: FILE-2.mkv is written instead."""

    durable, spills = True, False

    def __init__(self, path: Path, context: SinkContext) -> None:
        """The first frame creates the file. Raises ConfigError without PyAV, SinkError for an unusable folder."""
        require_packages("av", purpose="writing video", extra="stream")
        self.name = str(path)
        self._context = context
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{path}: its folder cannot be created ({error.strerror or error}).", False) from error
        self.path = _free(path)
        if self.path != path:
            context.report(f"{path} exists; writing the video to {self.path}.")
        self._container: Any = None
        self._stream: Any = None
        self._last = -1
        self._shift = 0  # added to time stamps

    def write(self, item: MaskedFrame) -> None:
        """See Sink. Frames of other sizes are resized to that of the first one."""
        import av

        picture = _even(render(item, self._context))
        try:
            if self._container is None:
                self._open(picture.shape[0], picture.shape[1])
            size = (self._stream.width, self._stream.height)
            if picture.shape[1::-1] != size:
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = self._presentation_time(item.frame.timestamp)
            frame.time_base = _TIME_BASE
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
            self._last = frame.pts
        except (av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def _presentation_time(self, timestamp: float) -> int:
        """Return the presentation time of a frame in _TIME_BASE, after that of the last one."""
        time = round(timestamp / _TIME_BASE) + self._shift
        if time < self._last - _BACKWARDS:
            next_time = self._last + round(1 / (self._context.rate or _FALLBACK_RATE) / _TIME_BASE)
            self._shift += next_time - time
            time = next_time
        return max(self._last + 1, time)

    def _open(self, height: int, width: int) -> None:
        import av

        settings = {"flush_packets": "1"}
        if self.path.suffix.lower() == ".mp4":
            settings["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        else:
            settings["cluster_time_limit"] = "1000"
        self._container = av.open(str(self.path), "w", options=settings)
        self._stream = self._container.add_stream("libx264", rate=round(self._context.rate or _FALLBACK_RATE))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = _TIME_BASE
        # No lookahead, and a key frame every few seconds, so that a crash loses little.
        self._stream.options = {"preset": "veryfast", "crf": "21", "tune": "zerolatency"}
        self._stream.codec_context.gop_size = 50
        self._stream.codec_context.thread_count = 1  # the model needs the cores

    def flush(self) -> None:
        """See Sink. The encoder buffers nothing."""

    def close(self) -> None:
        """Finish the file. Raises SinkError if its end cannot be written."""
        import av

        container, self._container = self._container, None
        if container is None:
            return
        try:
            for packet in self._stream.encode(None):
                container.mux(packet)
            container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> SinkError:
        reason = getattr(error, "strerror", None) or str(error)
        # A full disk can recover; any other error damages the file.
        return SinkError(
            f"{self.path}: the video cannot be written ({' '.join(str(reason).split())}).",
            temporary=getattr(error, "errno", None) == errno.ENOSPC,
        )


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _even(picture: np.ndarray) -> np.ndarray:
    """Pad (H, W, 3) to even sides of a minimum length, as H.264 requires; the last row and column are repeated."""
    height, width = picture.shape[:2]
    rows = max(_SHORTEST_SIDE, height + height % 2) - height
    columns = max(_SHORTEST_SIDE, width + width % 2) - width
    return np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else picture
