"""Delivery of masks to one sink in its own thread, isolated from failing and slow sinks.

Failed writes are retried with exponential backoff. Meanwhile items wait in a short memory queue, then in the spill
folder, and are delivered in order after the sink recovers. Items left at the end stay on disk and are delivered first
by the next run with the same folder. A sink that stores items on disk itself has no spill folder: if the disk is full,
the policy "latest" loses new items and "all" waits. Delivery is at least once: an item arrives twice if the sink failed
after accepting it, and every lost item is reported.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import Sink, SinkClosed, SinkError
from pspnet.stream.sinks.uploader import Uploader
from pspnet.stream.spill_queue import SpillQueue
from pspnet.stream.statistics import SinkStatistics
from pspnet.system.backoff import Backoff

_HANGING = 10.0  # seconds after the grace period until a hanging thread is abandoned
_IDLE_FLUSH = 30.0  # seconds without an item until a sink is flushed


@dataclass(frozen=True)
class DeliveryLimits:
    """Limits of a delivery.

    depth: items in memory. patience: seconds that `put` blocks for a slow sink before it spills to disk; None:
    without limit. grace: seconds without progress after the end of the stream until the sink is abandoned.
    first_pause, longest_pause: backoff in seconds.
    """

    depth: int = 8
    patience: float | None = 2.0
    grace: float = 30.0
    first_pause: float = 0.5
    longest_pause: float = 30.0


class Delivery:
    """A sink with its thread, memory queue, spill queue and uploader (None for most sinks)."""

    def __init__(
        self,
        sink: Sink,
        spill: SpillQueue | None,
        statistics: SinkStatistics,
        report: Callable[[str], None],
        limits: DeliveryLimits = DeliveryLimits(),
        uploader: Uploader | None = None,
    ) -> None:
        self.sink, self._uploader = sink, uploader
        self._statistics, self._report, self._limits = statistics, report, limits
        self._spill_queue = spill
        self._depth = limits.depth if sink.durable else 1
        self._patience = limits.patience
        self._memory: deque[MaskedFrame] = deque()
        self._from_disk = False  # whether the item that is being written came from the spill queue
        self._changed = threading.Condition()
        self._backoff = Backoff(limits.first_pause, limits.longest_pause)
        self._failing_since: float | None = None
        self._ending, self._ending_since = False, 0.0
        self._dead = False  # accepts no more items
        self._discarded = False  # closed by the user
        self._slow = False  # exceeded the patience, and delivered nothing since
        self._progress = time.monotonic()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"deliver {sink.name}", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        if self._uploader is not None:
            self._uploader.start(self._statistics.count)
        self._thread.start()

    @property
    def dead(self) -> bool:
        """True if the sink accepts no more items, or the destination of its files refused them."""
        return self._dead or (self._uploader is not None and self._uploader.error is not None)

    # --- model thread -------------------------------------------------------------------------------------------------

    def put(self, item: MaskedFrame) -> None:
        """Queue an item; block while the sink is slow, spill to disk if it fails."""
        with self._changed:
            if not self.sink.durable:
                if self._memory:
                    self._memory.clear()
                    self._statistics.count("skipped")
                self._push(item)
                return
            if not self._spilled():
                self._wait_for_room()
            if self._discarded:
                return
            if not self._spilled() and self._has_room() and not self._dead:
                self._push(item)
            else:
                self._spill(item)

    def _wait_for_room(self) -> None:
        """Wait until the memory queue has room, the sink fails (unless nothing may be lost), or for the patience."""
        started = time.monotonic()
        keep = (self._spill_queue, self._limits.patience) == (None, None)
        while not (self._has_room() or self._dead or self._slow) and (self._failing_since is None or keep):
            if self._patience is not None and time.monotonic() - started >= self._patience:
                self._slow = True
                return
            self._changed.wait(None if self._patience is None else started + self._patience - time.monotonic())

    def _has_room(self) -> bool:
        return len(self._memory) < self._depth

    def _spilled(self) -> bool:
        return self._spill_queue is not None and len(self._spill_queue) > 0

    def _push(self, item: MaskedFrame) -> None:
        if not self._dead:
            self._memory.append(item)
            self._statistics.waiting = len(self._memory)
            self._changed.notify_all()

    def _spill(self, item: MaskedFrame) -> None:
        """Spill an item; if the folder is full, wait for room or count the item as lost. Requires the lock."""
        while self._spill_queue is not None:
            if self._spill_queue.append(item):
                self._changed.notify_all()
                return
            # Without a patience limit nothing may be lost: the whole stream waits for the sink.
            if self._patience is not None or self._dead:
                self._statistics.count("lost")
                return
            self._changed.wait(1.0)
            if not self._spilled() and self._has_room() and not self._dead:
                self._push(item)
                return
        if not self._discarded:
            self._statistics.count("lost")

    # --- sink thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            unflushed = False
            while True:
                item = self._next(_IDLE_FLUSH if unflushed else None)
                if item is None and self._ended():
                    break
                if item is None:
                    unflushed = not self._attempt(self.sink.flush)
                elif self._attempt(functools.partial(self.sink.write, item)):
                    unflushed = True
                    self._done(item)
                if self._dead:
                    return
            self._attempt(self.sink.flush)
            self._drain()
        except BaseException as error:
            self._error = error
            self._abandon(f"unexpected exception ({type(error).__name__}: {error}).")
        finally:
            self._close()

    def _next(self, timeout: float | None) -> MaskedFrame | None:
        """Return the oldest item; None at the end, or after `timeout` seconds without an item.

        The item stays in its queue until it is written; a display's item is removed, so that no newer one replaces it.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._memory) or self._spilled() or self._ending, timeout)
            item = None if self._memory or self._spill_queue is None else self._spill_queue.first()
            self._from_disk = item is not None
            if item is not None or not self._memory:
                return item
            return self._memory[0] if self.sink.durable else self._memory.popleft()

    def _ended(self) -> bool:
        with self._changed:
            return self._ending and not self._memory and not self._spilled()

    def _done(self, item: MaskedFrame) -> None:
        """Remove a written item from memory or disk, and count it."""
        with self._changed:
            if self._dead:
                return
            recovered = self._slow = False
            if self._from_disk and self._spill_queue is not None:
                recovered = self._spill_queue.remove_first()
            elif self.sink.durable:
                self._memory.popleft()
            self._statistics.waiting = len(self._memory)
            self._progress = time.monotonic()
            self._changed.notify_all()
        if recovered:
            self._statistics.count("recovered")
        else:
            self._statistics.delivered(item.frame.captured)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Retry an action of the sink until it succeeds; return False if the sink is closed or abandoned."""
        while not self._dead:
            try:
                action()
            except SinkClosed as error:
                self._discard(self._reason(error))
                return False
            except SinkError as error:
                if not error.temporary:
                    self._abandon(self._reason(error))
                    return False
                if not self._pause(self._reason(error)):
                    return False
                continue
            self._succeeded()
            return True
        return False

    def _drain(self) -> None:
        """Wait until all files are uploaded, the grace period passes without progress, or they are refused."""
        uploader, next_retry = self._uploader, 0.0
        left = 0 if uploader is None else len(uploader) + 1
        while uploader is not None and uploader.error is None and len(uploader) and not self._expired():
            if len(uploader) < left:
                left, self._progress = len(uploader), time.monotonic()
            if time.monotonic() >= next_retry:
                uploader.retry()
                next_retry = time.monotonic() + self._limits.grace / 5
            time.sleep(0.02)
        if uploader is not None and uploader.error is not None and not isinstance(uploader.error, SinkError):
            raise uploader.error

    def _reason(self, error: SinkError) -> str:
        """Return the message of a sink's error without the sink's name."""
        return str(error).removeprefix(f"{self.sink.name}: ")

    def _pause(self, reason: str) -> bool:
        """Wait until the next retry; return False if the sink is abandoned."""
        with self._changed:
            started = time.monotonic()
            if self._failing_since is None:
                self._failing_since = started
                self._report(f"{self.sink.name}: {reason} Retrying with exponential backoff; items are queued.")
            self._statistics.count("retries")
            self._changed.notify_all()
            until = started + self._backoff.next()
            while not self._dead and time.monotonic() < until and not self._expired():
                if self._ending:  # a long pause that began before the end must not exhaust the grace period
                    until = min(until, max(started, self._ending_since) + self._limits.grace / 5)
                self._changed.wait(max(0.01, min(until - time.monotonic(), 0.5)))
            if self._dead:
                return False
            expired = self._expired()
        if expired:
            self._abandon(reason)
        return not expired

    def _idle(self) -> float:
        """Return the seconds without a delivery since the end of the stream."""
        return time.monotonic() - max(self._progress, self._ending_since) if self._ending else 0.0

    def _expired(self) -> bool:
        return self._idle() > self._limits.grace

    def _succeeded(self) -> None:
        with self._changed:
            self._backoff.reset()
            since, self._failing_since = self._failing_since, None
            waiting = len(self._memory) + (0 if self._spill_queue is None else len(self._spill_queue))
        if since is not None:
            self._report(f"{self.sink.name}: recovered after {time.monotonic() - since:.1f} s; {waiting} items queued.")

    def _discard(self, reason: str) -> None:
        """Discard all items of a sink whose reader or window was closed."""
        with self._changed:
            self._dead = self._discarded = True
            self._spill_queue = None
            self._memory.clear()
            self._changed.notify_all()
        self._report(f"{self.sink.name}: {reason}")

    def _abandon(self, reason: str) -> None:
        """Abandon the sink; items in memory are spilled before those on disk, or lost."""
        with self._changed:
            if self._dead:
                return
            self._dead = True
            remaining = list(self._memory)
            self._memory.clear()
            self._statistics.waiting = 0
            if self._spill_queue is not None and remaining:
                self._spill_queue.prepend(remaining)
            elif self.sink.durable:
                self._statistics.count("lost", len(remaining))
            self._changed.notify_all()
        self._report(f"{self.sink.name}: gave up: {reason}")

    def _close(self) -> None:
        try:
            self.sink.close()
        except SinkError as error:
            self._report(f"{self.sink.name}: {self._reason(error)}")
            self._statistics.count("unfinished")

    # --- shutdown -----------------------------------------------------------------------------------------------------

    def limit_patience(self) -> None:
        """Limit the patience to the grace period, so that a hanging sink cannot block the stop of a stream."""
        with self._changed:
            self._patience = self._limits.grace if self._patience is None else self._patience
            self._changed.notify_all()

    def finish(self) -> None:
        """End the input; queued items are delivered or spilled after the grace period."""
        with self._changed:
            self._ending, self._ending_since = True, time.monotonic()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread and report the items left on disk. Raises an unexpected exception of the sink."""
        while self._thread.is_alive():
            self._thread.join(0.2)
            if self._thread.is_alive() and self._idle() > self._limits.grace + _HANGING:
                # The thread hangs in the sink; the process does not wait for it.
                self._statistics.count("unfinished")
                self._abandon(f"no response for {self._idle():.0f} s; items that it accepted may be lost.")
                break
        with self._changed:
            if self._spill_queue is not None:
                self._spill_queue.close()
        if self._error is not None:
            raise self._error
