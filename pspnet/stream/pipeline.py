"""Pipeline of a stream: decode, infer and deliver in separate threads, with bounded queues between them.

    source.frames() -> FrameQueue -> model.mask -> Delivery -> sink.write
    one thread         1 or 4      one thread    8 each      one thread each

The policy `latest` queues only the newest frame before the model; `all` queues every frame and blocks the source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pspnet.errors import PspnetError
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.stream.delivery import Delivery
from pspnet.stream.frame_queue import FrameQueue
from pspnet.stream.model import Model, ModelUnavailable
from pspnet.stream.sources.base import Source
from pspnet.stream.statistics import Statistics
from pspnet.system.backoff import Backoff

_QUEUED_FRAMES = 4  # between decoder and model, under the policy "all"
_REPORTED_FAILURES = 5  # frames without a mask that are reported individually
_SOURCE_SECONDS = 10.0  # timeout for the end of a source after close()


@dataclass(frozen=True)
class PipelineSettings:
    """Settings of a pipeline.

    latest: the policy. max_frames: limit of frames from the source; None for all. grace: seconds after a stop request
    in which an unavailable model is retried for frames of a file. give_up: seconds without a response until the stream
    ends. first_pause, longest_pause: backoff in seconds.
    """

    latest: bool
    max_frames: int | None = None
    grace: float = 30.0
    give_up: float = 300.0
    first_pause: float = 0.2
    longest_pause: float = 5.0


class Pipeline:
    """Threads of one stream, from its first frame to its last delivery."""

    def __init__(
        self,
        source: Source,
        model: Model,
        deliveries: Sequence[Delivery],
        statistics: Statistics,
        settings: PipelineSettings,
        report: Callable[[str], None],
    ) -> None:
        self._source, self._model, self._deliveries = source, model, deliveries
        self._statistics, self._settings, self._report = statistics, settings, report
        self._queue = FrameQueue(_QUEUED_FRAMES, settings.latest, lambda: statistics.count("late"))
        self._stopped_at: float | None = None
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._size: tuple[int, int] | None = None

    def run(self, should_stop: Callable[[], bool], tick: Callable[[], None]) -> None:
        """Run until the source ends or `should_stop` returns True; then deliver the accepted frames.

        `tick` is called a few times per second in this thread. After all deliveries, raises the error that ended the
        source or the model: SourceError, ModelUnavailable or an unexpected exception.
        """
        decoder = threading.Thread(target=self._guarded, args=(self._decode,), name="decode", daemon=True)
        worker = threading.Thread(target=self._guarded, args=(self._infer,), name="infer", daemon=True)
        for delivery in self._deliveries:
            delivery.start()
        decoder.start()
        worker.start()
        while worker.is_alive():
            worker.join(0.1)
            tick()
            if not self._stopping.is_set() and (should_stop() or all(delivery.dead for delivery in self._deliveries)):
                self.stop()
        self.stop()
        for delivery in self._deliveries:
            delivery.finish()
        joiners = [threading.Thread(target=self._guarded, args=(one.join,), daemon=True) for one in self._deliveries]
        for joiner in joiners:
            joiner.start()
        while any(joiner.is_alive() for joiner in joiners):
            next(joiner for joiner in joiners if joiner.is_alive()).join(0.1)
            tick()
        decoder.join(_SOURCE_SECONDS)
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Accept no more frames; accepted frames are still predicted and delivered."""
        if not self._stopping.is_set():
            self._stopped_at = time.monotonic()
            self._stopping.set()
            self._queue.close()
            self._source.close()
            for delivery in self._deliveries:
                delivery.limit_patience()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._errors.append(error)

    def _decode(self) -> None:
        try:
            for count, frame in enumerate(self._source.frames(), 1):
                if self._stopping.is_set() or not self._queue.put(frame):
                    break
                self._statistics.count("read")
                if count == self._settings.max_frames:
                    break
        finally:
            self._queue.close()

    def _infer(self) -> None:
        try:
            while (frame := self._queue.get()) is not None:
                if frame.image.shape[:2] != self._size:
                    frame = self._prepared(frame)
                taken = time.monotonic()
                frame, mask = self._mask(frame)
                if mask is None:
                    continue
                inferred = time.monotonic()
                self._statistics.inferred(frame.arrived, taken, inferred)
                item = MaskedFrame(frame, mask, inferred)
                for delivery in self._deliveries:
                    delivery.put(item)
        finally:
            self._queue.close()
            while self._queue.get() is not None:  # after an error only: accepted frames without a mask
                self._statistics.count("failed")
            self._model.close()

    def _prepared(self, frame: Frame) -> Frame:
        """Warm up the model for a new size; return the frame to continue with, which may be a newer one."""
        self._size = (frame.image.shape[0], frame.image.shape[1])
        try:
            self._model.prepare(*self._size)
        except PspnetError:
            return frame  # its prediction raises the error
        return self._queue.newest(frame)

    def _mask(self, frame: Frame) -> tuple[Frame, np.ndarray | None]:
        """Predict a frame, or a newer one if the model was unavailable; the mask is None if the frame failed."""
        backoff = Backoff(self._settings.first_pause, self._settings.longest_pause)
        unavailable_since: float | None = None
        while True:
            try:
                mask = self._model.mask(frame.image)
            except ModelUnavailable as error:
                if unavailable_since is None:
                    unavailable_since = time.monotonic()
                    self._report(f"{error} Retrying with exponential backoff.")
                if self._expired():
                    self._failed(frame, error)
                    return frame, None
                if time.monotonic() - unavailable_since > self._settings.give_up:
                    self._failed(frame, error)
                    raise
                if self._stopping.is_set():
                    time.sleep(backoff.next())
                else:
                    self._stopping.wait(backoff.next())
                frame = self._queue.newest(frame)
            except PspnetError as error:
                self._failed(frame, error)
                return frame, None
            else:
                if unavailable_since is not None:
                    self._report(f"The model recovered after {time.monotonic() - unavailable_since:.1f} s.")
                return frame, mask

    def _expired(self) -> bool:
        if self._stopped_at is None:
            return False
        grace = 0.0 if self._settings.latest else self._settings.grace
        return time.monotonic() - self._stopped_at >= grace

    def _failed(self, frame: Frame, error: PspnetError) -> None:
        self._statistics.count("failed")
        failures = self._statistics["failed"]
        if failures <= _REPORTED_FAILURES:
            last = " More failures are only counted." if failures == _REPORTED_FAILURES else ""
            self._report(f"frame {frame.index} has no mask: {error}{last}")
