"""SIGTERM and Ctrl-C as a flag that a loop checks between two steps."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Context manager: the first SIGTERM or SIGINT only sets `signal_number`; a second one ends the process.

    Args:
        message: printed to standard error, after the signal's name, when the first signal arrives.
        exit_message: printed when a second signal arrives; the process then exits without any clean-up. None: the
            previous handlers are restored and receive the second signal.
        repeat_seconds: signals within this time after the first are duplicates and are ignored. torchrun forwards a
            signal that its processes may already have received, for example from a terminal's Ctrl-C.
    """

    def __init__(
        self,
        message: str = "stopping after this step, with a checkpoint; a second signal stops immediately.",
        exit_message: str | None = None,
        repeat_seconds: float = 1.0,
    ) -> None:
        self.signal_number: int | None = None
        self._message, self._exit_message, self._repeat_seconds = message, exit_message, repeat_seconds
        self._received = 0.0
        self._previous: dict[int, Any] = {}
        self._owner = os.getpid()

    def __bool__(self) -> bool:
        return self.is_set()

    def is_set(self) -> bool:
        """True once a signal was received."""
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it: 143 for SIGTERM, 130 for Ctrl-C.

        Also 143 if another process of the run received the signal.
        """
        return 128 + (self.signal_number or signal.SIGTERM)

    def __enter__(self) -> StopRequest:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:
            # Only the main thread may set handlers; elsewhere, as in a notebook's worker thread, the host handles them.
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
            return  # a loader worker, forked with this handler: the main process ends it
        if self.signal_number is None:
            self.signal_number, self._received = number, time.monotonic()
            _print(f"{signal.Signals(number).name}: {self._message}")
        elif time.monotonic() - self._received > self._repeat_seconds:
            if self._exit_message is not None:
                _print(self._exit_message)
                os._exit(128 + number)
            self._restore()
            os.kill(os.getpid(), number)


def _print(message: str) -> None:
    # os.write, because print is not re-entrant and the signal may have interrupted another print.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{message}\n".encode())
