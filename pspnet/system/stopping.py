"""SIGTERM and Ctrl-C as a wish that a stream sees; the second one ends the process."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

_REPEAT_SECONDS = 0.5  # a terminal and a parent process may both hand on the same Ctrl-C


class StopSignals:
    """Context manager for the main thread: the first SIGTERM or SIGINT sets `number`, the second one exits at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._received = 0.0
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a stop is wished for."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, 0 without one: 130 for Ctrl-C, 143 for SIGTERM."""
        return 0 if self.number is None else 128 + self.number

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # os.write, because print may be interrupted in the middle of itself and is not re-entrant.
        error_output = sys.__stderr__.fileno() if sys.__stderr__ else 2
        if self.number is None:
            self.number, self._received = number, time.monotonic()
            name = signal.Signals(number).name
            message = f"\n{name}: no more frames; delivering what was taken. A second one stops at once.\n"
            os.write(error_output, message.encode())
        elif time.monotonic() - self._received > _REPEAT_SECONDS:
            os.write(error_output, b"\nStopped at once: what had not been delivered and is not on disk is lost.\n")
            os._exit(128 + number)
