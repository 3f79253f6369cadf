"""Bounded queue between decoder and model: the latest frame only, or every frame."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pspnet.masks.frames import Frame


class FrameQueue:
    """Thread-safe queue of at most `depth` frames.

    With `latest`, a new frame replaces a queued one, and `dropped` is called for the replaced frame. Without, `put`
    blocks while the queue is full.
    """

    def __init__(self, depth: int, latest: bool, dropped: Callable[[], None]) -> None:
        self._depth = 1 if latest else depth
        self._latest = latest
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._dropped = dropped

    def put(self, frame: Frame) -> bool:
        """Add a frame. Return False if the queue is closed and the frame was not added."""
        with self._changed:
            if self._latest:
                if self._frames and not self._closed:
                    self._frames.clear()
                    self._dropped()
            else:
                self._changed.wait_for(lambda: self._closed or len(self._frames) < self._depth)
            if self._closed:
                return False
            self._frames.append(frame)
            self._changed.notify_all()
            return True

    def get(self) -> Frame | None:
        """Wait for the next frame and remove it; None if the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._frames))
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._changed.notify_all()
            return frame

    def newest(self, frame: Frame) -> Frame:
        """Return the frame to process after a delay of `frame`: with `latest` a newer queued frame, if any."""
        with self._changed:
            if not self._latest or not self._frames:
                return frame
            self._dropped()
            return self._frames.popleft()

    def close(self) -> None:
        """Reject more frames; queued frames can still be removed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
