"""Structured log: one JSON object per line, written by a background thread.

A slow or blocked log reader must not delay a request: lines are buffered in memory, and beyond a limit dropped and
counted.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from typing import IO, Any

_MAX_LINES = 10_000
_FLUSH_SECONDS = 0.2


class JsonLog:
    """Writes events as JSON lines. `write` takes microseconds and never blocks."""

    def __init__(self, stream: IO[str] | None = None, **fields: Any) -> None:
        self._stream = stream or sys.stderr
        self._fields = fields
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, event: str, **fields: Any) -> None:
        """Log a line: time (Unix seconds), event, the fields of this log and the given ones."""
        if len(self._lines) >= _MAX_LINES:
            self._dropped += 1
            return
        self._lines.append(json.dumps({"time": round(time.time(), 3), "event": event, **self._fields, **fields}))

    def error(self, event: str, error: BaseException, **fields: Any) -> None:
        """Log a line with an exception and its traceback."""
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.write(event, **fields, error=f"{type(error).__name__}: {error}", traceback=text)

    def close(self, seconds: float = 2.0) -> None:
        """Flush the buffered lines, with a timeout in seconds."""
        self._closing.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        # Flush on a timer: waking this thread for every line would cost each request a context switch.
        while not self._closing.wait(_FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if self._dropped:
            dropped = {"time": round(time.time(), 3), "event": "log_lines_dropped", "count": self._dropped}
            lines.append(json.dumps(dropped))
            self._dropped = 0
        if lines:
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # the reader is gone; serving continues
                return


class LogHandler(logging.Handler):
    """Forwards the records of a library's logger to a JsonLog."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._log.error("library", record.exc_info[1], message=record.getMessage())
        else:
            self._log.write("library", message=record.getMessage())
