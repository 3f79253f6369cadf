"""Structured logs: one JSON object a line, written by a thread of its own.

A log reader that is slow or stuck must not hold up a request: lines wait in memory, and beyond a limit they are counted
and dropped.
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

_MOST_LINES = 10_000
_FLUSH_SECONDS = 0.2


class JsonLog:
    """Writes events as JSON lines. `write` costs a caller microseconds and never blocks."""

    def __init__(self, stream: IO[str] | None = None, **fields: Any) -> None:
        self._stream = stream or sys.stderr
        self._fields = fields
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, event: str, **fields: Any) -> None:
        """One line: time (seconds since 1970), event, this log's own fields and these."""
        if len(self._lines) >= _MOST_LINES:
            self._dropped += 1
            return
        self._lines.append(json.dumps({"time": round(time.time(), 3), "event": event, **self._fields, **fields}))

    def error(self, event: str, error: BaseException, **fields: Any) -> None:
        """One line with an exception and its traceback."""
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.write(event, **fields, error=f"{type(error).__name__}: {error}", traceback=text)

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, for at most so long."""
        self._closing.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        # A timer instead of a wake-up for every line: a request shall not pay for a change of threads.
        while not self._closing.wait(_FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if self._dropped:
            lines.append(
                json.dumps({"time": round(time.time(), 3), "event": "log_lines_dropped", "count": self._dropped})
            )
            self._dropped = 0
        if lines:
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more; serving goes on
                return


class LogHandler(logging.Handler):
    """Sends the records of a library's logger to a JsonLog."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._log.error("library", record.exc_info[1], message=record.getMessage())
        else:
            self._log.write("library", message=record.getMessage())
