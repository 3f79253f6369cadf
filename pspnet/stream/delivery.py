"""Masks to one sink, in a thread of its own, so that a sink which fails or is slow loses nothing and holds up nobody.

What a sink does not take is tried again, later each time. Meanwhile items wait in a short queue in memory, then in the
spill folder, and all of them are delivered in their order when the sink is back. What remains at the end stays on disk
and is delivered first when a stream starts with the same folder. An item may arrive twice, if a sink failed after it
took it, but none is lost without being said.
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
from pspnet.stream.spill_folder import SpillFolder
from pspnet.stream.spill_queue import SpillQueue
from pspnet.stream.statistics import SinkStatistics
from pspnet.system.backoff import Backoff

_HANGING = 10.0  # seconds beyond the grace after which a sink's thread is left alone
_IDLE_FLUSH = 30.0  # seconds without an item after which a sink is asked to bring away what it holds


@dataclass(frozen=True)
class DeliveryLimits:
    """How much and how long.

    depth: items in memory. patience: seconds that the model waits for a sink that is slow but does not fail, before
    its items go to disk; None for as long as it takes. grace: seconds without a success after the stream's end, after
    which a sink is given up. first_pause, longest_pause: of the back-off.
    """

    depth: int = 8
    patience: float | None = 2.0
    grace: float = 30.0
    first_pause: float = 0.5
    longest_pause: float = 30.0


class Delivery:
    """A sink with its thread, its queue and its spill folder (None for a display, which needs none)."""

    def __init__(
        self,
        sink: Sink,
        spill: SpillFolder | None,
        statistics: SinkStatistics,
        report: Callable[[str], None],
        limits: DeliveryLimits = DeliveryLimits(),
    ) -> None:
        self.sink = sink
        self._statistics, self._report, self._limits = statistics, report, limits
        self._spill_queue = None if spill is None else SpillQueue(spill, sink.name, statistics, report)
        self._depth = limits.depth if sink.durable else 1
        self._patience = limits.patience
        self._memory: deque[MaskedFrame] = deque()
        self._from_disk = False  # where the item that the sink has now came from
        self._changed = threading.Condition()
        self._backoff = Backoff(limits.first_pause, limits.longest_pause)
        self._failing_since: float | None = None
        self._ending, self._ending_since = False, 0.0
        self._dead = False  # takes nothing any more
        self._progress = time.monotonic()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"deliver {sink.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def dead(self) -> bool:
        """Whether the sink takes nothing any more."""
        return self._dead

    # --- the model's side ---------------------------------------------------------------------------------------------

    def put(self, item: MaskedFrame) -> None:
        """Take over an item; waits where the sink is slow, and puts it on disk where the sink fails."""
        with self._changed:
            if not self.sink.durable:
                if self._memory:
                    self._memory.clear()
                    self._statistics.count("skipped")
                self._push(item)
                return
            if not self._spilled():
                self._wait_for_room()
            if self._dead and self._spill_queue is None:
                return
            if not self._spilled() and self._has_room() and not self._dead:
                self._push(item)
            else:
                self._to_disk(item)

    def _wait_for_room(self) -> None:
        """Until there is room, the sink fails, or patience ends."""
        started = time.monotonic()
        while not self._has_room() and self._failing_since is None and not self._dead:
            if self._patience is not None and time.monotonic() - started >= self._patience:
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

    def _to_disk(self, item: MaskedFrame) -> None:
        """Spill one item; where the folder is full, wait for room or say that the item is lost. Under the lock."""
        while self._spill_queue is not None:
            if self._spill_queue.append(item):
                self._changed.notify_all()
                return
            # Without patience nothing may be lost: the whole stream waits until the sink has taken something.
            if self._patience is not None or self._dead:
                self._statistics.count("lost")
                return
            self._changed.wait(1.0)
            if not self._spilled() and self._has_room() and not self._dead:
                self._push(item)
                return

    # --- the sink's side ----------------------------------------------------------------------------------------------

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
        except BaseException as error:
            self._error = error
            self._stop_for_good(f"stopped by a defect ({type(error).__name__}: {error})")
        finally:
            self._close()

    def _next(self, timeout: float | None) -> MaskedFrame | None:
        """The oldest item; None at the end, or when nothing came for `timeout` seconds.

        It stays where it is until the sink has it; a display's is taken out, so that no newer one replaces it.
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
        """The sink has the item: remove it from memory or disk."""
        with self._changed:
            if self._dead:
                return
            recovered = False
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
        """Do something with the sink until it works; False once the sink is given up."""
        while not self._dead:
            try:
                action()
            except SinkClosed as error:
                self._forget(self._reason(error))
                return False
            except SinkError as error:
                if not error.temporary:
                    self._stop_for_good(self._reason(error))
                    return False
                if not self._pause(self._reason(error)):
                    return False
                continue
            self._worked()
            return True
        return False

    def _reason(self, error: SinkError) -> str:
        """A sink's words, without its name if they begin with it."""
        return str(error).removeprefix(f"{self.sink.name}: ")

    def _pause(self, reason: str) -> bool:
        """Wait until the next try; False where there is to be none."""
        with self._changed:
            started = time.monotonic()
            if self._failing_since is None:
                self._failing_since = started
                self._report(f"{self.sink.name}: {reason} Trying again, later each time; its items wait.")
            self._statistics.count("retries")
            self._changed.notify_all()
            until = started + self._backoff.next()
            while not self._dead and time.monotonic() < until and not self._expired():
                if self._ending:  # a long pause from before the end may not use up the grace
                    until = min(until, max(started, self._ending_since) + self._limits.grace / 5)
                self._changed.wait(max(0.01, min(until - time.monotonic(), 0.5)))
            if self._dead:
                return False
            expired = self._expired()
        if expired:
            self._stop_for_good(reason)
        return not expired

    def _idle(self) -> float:
        """Seconds since the stream's end in which nothing was delivered."""
        return time.monotonic() - max(self._progress, self._ending_since) if self._ending else 0.0

    def _expired(self) -> bool:
        return self._idle() > self._limits.grace

    def _worked(self) -> None:
        with self._changed:
            self._backoff.reset()
            since, self._failing_since = self._failing_since, None
            waiting = len(self._memory) + (0 if self._spill_queue is None else len(self._spill_queue))
        if since is not None:
            self._report(f"{self.sink.name}: back after {time.monotonic() - since:.1f} s; {waiting} items waited.")

    def _forget(self, reason: str) -> None:
        """Nobody is there any more: nothing is kept for this sink."""
        with self._changed:
            self._dead = True
            self._spill_queue = None
            self._memory.clear()
            self._changed.notify_all()
        self._report(f"{self.sink.name}: {reason}")

    def _stop_for_good(self, reason: str) -> None:
        """Give the sink up; what it has not taken goes to disk, before what is there."""
        with self._changed:
            if self._dead:
                return
            self._dead = True
            kept = list(self._memory)
            self._memory.clear()
            self._statistics.waiting = 0
            if self._spill_queue is not None and kept:
                self._spill_queue.prepend(kept)
            self._changed.notify_all()
        self._report(f"{self.sink.name}: given up. {reason}")

    def _close(self) -> None:
        try:
            self.sink.close()
        except SinkError as error:
            self._report(f"{self.sink.name}: {self._reason(error)}")
            self._statistics.count("unfinished")

    # --- the end ------------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """The stream is to stop: wait for a sink that hangs no longer than the grace, then put its items on disk."""
        with self._changed:
            self._patience = self._limits.grace if self._patience is None else self._patience
            self._changed.notify_all()

    def finish(self) -> None:
        """No more items come: what is there is delivered, or given up after the grace."""
        with self._changed:
            self._ending, self._ending_since = True, time.monotonic()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the end, and say what stays on disk. Raises what a defect of the sink raised."""
        while self._thread.is_alive():
            self._thread.join(0.2)
            if self._thread.is_alive() and self._idle() > self._limits.grace + _HANGING:
                # Its thread hangs in the sink; the process does not wait for it.
                self._statistics.count("unfinished")
                self._stop_for_good(f"It has not answered for {self._idle():.0f} s; what it took may not have arrived.")
                break
        with self._changed:
            if self._spill_queue is not None:
                self._spill_queue.close()
        if self._error is not None:
            raise self._error
