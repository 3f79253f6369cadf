"""What a stream tells its user, on standard error: sentences, and one line of numbers that is written over."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 30.0


class Console:
    """Sentences and a status line from several threads. Without a terminal the line comes every half minute."""

    def __init__(self, quiet: bool = False) -> None:
        """quiet: no status line."""
        self._lock = threading.Lock()
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS)
        self._drawn = False

    def say(self, text: str) -> None:
        """One sentence on a line of its own."""
        with self._lock:
            self._clear()
            print(text, file=sys.stderr, flush=True)

    def tick(self, line: Callable[[], str]) -> None:
        """Show the status line if it is time for it."""
        if self._quiet or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS)
        text = line()
        with self._lock:
            if self._terminal:
                self._clear()
                print(text[:200], end="", file=sys.stderr, flush=True)
                self._drawn = True
            else:
                print(text, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._drawn = False
