"""Fake source, model and sink for pipeline tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pspnet.classes import voc_palette
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.stream.sinks.base import SinkError


def frame(index: int, height: int = 4, width: int = 6) -> Frame:
    """Return a frame whose pixels are its number."""
    image = np.full((height, width, 3), index % 256, dtype=np.uint8)
    return Frame(index, image, time.time(), time.monotonic(), index / 10, {"n": str(index)})


def masked(index: int) -> MaskedFrame:
    """Return a frame with a mask whose values are its number."""
    one = frame(index)
    return MaskedFrame(one, one.image[..., 0], time.monotonic())


class CountingSource:
    """Source of `count` frames without pacing; `between` is called before each."""

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
    """Model whose mask is the frame's red channel; `before` is called before each and may raise."""

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
    """Sink that records its items. `faults`: an error or None for each call of write."""

    def __init__(
        self,
        name: str = "list",
        faults: Sequence[SinkError | None] = (),
        durable: bool = True,
        pause: float = 0.0,
        spills: bool | None = None,
    ) -> None:
        self.name, self.durable, self.spills = name, durable, durable if spills is None else spills
        self.numbers: list[int] = []
        self.masks: list[int] = []
        self.flushed = 0
        self.closed = False
        self.faults = list(faults)
        self.down: SinkError | None = None  # raised by every write while set
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
    """Fail if a condition is not met in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out waiting for the condition"
        time.sleep(0.01)
