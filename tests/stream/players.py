"""Stand-ins for the ends of a pipeline: a source, a model and sinks that do as a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pspnet.classes import voc_palette
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.stream.sinks.base import SinkError


def frame(index: int, height: int = 4, width: int = 6) -> Frame:
    """A frame whose pixels are its number."""
    image = np.full((height, width, 3), index % 256, dtype=np.uint8)
    return Frame(index, image, time.time(), time.monotonic(), index / 10, {"n": str(index)})


def masked(index: int) -> MaskedFrame:
    """A frame with a mask whose values are its number."""
    one = frame(index)
    return MaskedFrame(one, one.image[..., 0], time.monotonic())


class CountingSource:
    """`count` frames, as fast as they are taken; `between` runs before each."""

    def __init__(self, count: int, live: bool = False, between: Callable[[int], None] = lambda _: None) -> None:
        self.live, self.rate = live, None
        self._count, self._between = count, between
        self.closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        for index in range(self._count):
            self._between(index)
            if self.closed.is_set():
                return
            yield frame(index)

    def close(self) -> None:
        self.closed.set()


class InstantModel:
    """The mask is the frame's red channel; `before` runs ahead of each and may raise."""

    class_names: tuple[str, ...] = ("a", "b")

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.palette = voc_palette()
        self.prepared: list[tuple[int, int]] = []
        self.closed = False
        self._before = before

    def prepare(self, height: int, width: int) -> None:
        self.prepared.append((height, width))

    def mask(self, image: np.ndarray) -> np.ndarray:
        self._before(int(image[0, 0, 0]))
        return image[..., 0]

    def close(self) -> None:
        self.closed = True


class ListSink:
    """Keeps the numbers of its items. `faults`: for each call of write, an error to raise or None."""

    def __init__(
        self, name: str = "list", faults: Sequence[SinkError | None] = (), durable: bool = True, pause: float = 0.0
    ) -> None:
        self.name, self.durable, self.wants_images = name, durable, False
        self.numbers: list[int] = []
        self.masks: list[int] = []
        self.flushed = 0
        self.closed = False
        self.faults = list(faults)
        self.down: SinkError | None = None  # raised by every write while it is set
        self._pause = pause

    def write(self, item: MaskedFrame) -> None:
        if self._pause:
            time.sleep(self._pause)
        fault = self.down or (self.faults.pop(0) if self.faults else None)
        if fault is not None:
            raise fault
        self.numbers.append(item.frame.index)
        self.masks.append(int(item.mask[0, 0]))

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed = True


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Fail where a condition does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
