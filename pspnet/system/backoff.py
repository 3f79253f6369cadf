"""How long to wait before trying again: twice as long each time, and never quite as long as others wait."""

from __future__ import annotations

import random


class Backoff:
    """Seconds to wait after each failure in a row: up to first, 2 * first, 4 * first ... and never above `longest`.

    Each is drawn from the upper half of its span, so that many who failed together do not come back together.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0) -> None:
        self._first, self._longest = first, longest
        self._failures = 0

    def next(self) -> float:
        """The seconds to wait now."""
        span = min(self._first * 2.0 ** min(self._failures, 60), self._longest)
        self._failures += 1
        return span * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: the next failure is a first one."""
        self._failures = 0
