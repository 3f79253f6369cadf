"""Exponential backoff with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds after consecutive failures: up to first, 2 * first, 4 * first ..., at most `longest`.

    Each delay is drawn from the upper half of its range, so that clients that failed together retry apart.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0) -> None:
        self._first, self._longest = first, longest
        self._failures = 0

    def next(self) -> float:
        """The next delay in seconds."""
        span = min(self._first * 2.0 ** min(self._failures, 60), self._longest)
        self._failures += 1
        return span * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again at the first delay, after a success."""
        self._failures = 0
