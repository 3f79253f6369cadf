"""SIGTERM and Ctrl-C as a wish that the training loop sees between two steps."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

_REPEAT_SECONDS = 1.0


class StopRequest:
    """Context manager: while it is active, the first SIGTERM or SIGINT only sets `signal_number`.

    A second one ends the process. What follows within a second of the first is no second wish: torchrun hands on the
    signal that its processes were sent already, by a terminal's Ctrl-C for one.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._received = 0.0
        self._previous: dict[int, Any] = {}
        self._owner = os.getpid()

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it: 143 for SIGTERM, 130 for Ctrl-C.

        143 too where another process of the run got the signal.
        """
        return 128 + (self.signal_number or signal.SIGTERM)

    def __enter__(self) -> StopRequest:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:
            # Only the main thread may set handlers; elsewhere (a notebook's worker thread, say) the host handles them.
            self._restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a loader's worker, forked with this handler: the main process tells it when to end
        if self.signal_number is not None:
            if time.monotonic() - self._received > _REPEAT_SECONDS:
                self._restore()
                os.kill(os.getpid(), number)
            return
        self.signal_number, self._received = number, time.monotonic()
        # os.write, because print may be interrupted in the middle of itself and is not re-entrant.
        name = signal.Signals(number).name
        message = f"\n{name}: stopping after this step, with a checkpoint; a second one stops at once.\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())
