"""Messages and a status line of a stream on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 30.0


class Console:
    """Thread-safe messages and a status line. Without a terminal the status line is printed every 30 s."""

    def __init__(self, quiet: bool = False) -> None:
        """quiet: no status line."""
        self._lock = threading.Lock()
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS)
        self._drawn = False

    def print(self, text: str) -> None:
        """Print a message on its own line."""
        with self._lock:
            self._clear()
            print(text, file=sys.stderr, flush=True)

    def update_status(self, line: Callable[[], str]) -> None:
        """Print the status line if it is due; `line` is called only then."""
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
