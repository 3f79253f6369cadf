"""From the decoder to the model: the latest frame alone, or every frame in a short queue."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pspnet.masks.frames import Frame


class FrameQueue:
    """A queue between two threads that never holds more than `depth` frames.

    With `latest`, a new frame takes the place of one that still waits: that one is late, and `dropped` is called.
    Without, it waits for room.
    """

    def __init__(self, depth: int, latest: bool, dropped: Callable[[], None]) -> None:
        self._depth = 1 if latest else depth
        self._latest = latest
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._dropped = dropped

    def put(self, frame: Frame) -> bool:
        """Hand over a frame. False once the queue is closed: then it was not taken."""
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

    def take(self) -> Frame | None:
        """The next frame, waiting for it; None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._frames))
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._changed.notify_all()
            return frame

    def newest(self, frame: Frame) -> Frame:
        """The frame to work on if `frame` was held up: with `latest` the one that came since, if one did."""
        with self._changed:
            if not self._latest or not self._frames:
                return frame
            self._dropped()
            return self._frames.popleft()

    def close(self) -> None:
        """Take no more. What was taken is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
