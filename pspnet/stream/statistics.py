"""Statistics of a stream in bounded memory: counts, throughput and latency percentiles."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

_SHORTEST, _LONGEST = 1e-4, 86400.0  # seconds; values outside count in the first or last bin
_GROWTH = 1.02
_BINS = math.ceil(math.log(_LONGEST / _SHORTEST) / math.log(_GROWTH)) + 1
_RECENT = 256  # maximum number of frames in the recent statistics of the status line
_RECENT_SECONDS = 10.0


class LatencyDigest:
    """Streaming percentiles of durations, from a histogram with bins that grow by 2 %; relative error at most 1 %."""

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, dtype=np.int64)
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Add one duration."""
        index = 0 if seconds <= _SHORTEST else int(math.log(seconds / _SHORTEST) / math.log(_GROWTH))
        self._bins[min(index, _BINS - 1)] += 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def percentile(self, fraction: float) -> float | None:
        """Return the quantile `fraction` (0 to 1) in seconds; None without durations."""
        if not self.count:
            return None
        rank = max(1, math.ceil(fraction * self.count))
        index = int(np.searchsorted(np.cumsum(self._bins), rank))
        return min(float(_SHORTEST * _GROWTH ** (index + 0.5)), self.longest)

    def summary(self) -> dict[str, Any]:
        """Return count, mean, p50, p95, p99 and longest, in milliseconds."""
        if not self.count:
            return {"count": 0}
        percentiles = {"p50": self.percentile(0.5), "p95": self.percentile(0.95), "p99": self.percentile(0.99)}
        values = {"mean": self.total / self.count, **percentiles, "longest": self.longest}
        return {"count": self.count, **{f"{name}_ms": _milliseconds(value) for name, value in values.items()}}


class SinkStatistics:
    """Thread-safe statistics of one sink."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latency = LatencyDigest()
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # (monotonic, latency)
        self.waiting = 0
        self.on_disk = 0

    def count(self, counter: str, number: int = 1) -> None:
        """Add to `delivered`, `recovered` (spilled by an earlier run), `retries`, `spilled`, `skipped` or `lost`.

        `unfinished`: the sink hung or failed to close.
        """
        with self._lock:
            self._counts[counter] += number

    def delivered(self, captured: float) -> None:
        """Count a delivered item; `captured` as in Frame."""
        latency = max(0.0, time.time() - captured)
        with self._lock:
            self._counts["delivered"] += 1
            self._latency.add(latency)
            self._recent.append((time.monotonic(), latency))

    def recent(self) -> list[float]:
        """Return the sorted latencies of the last seconds; the last latency if there is none."""
        since = time.monotonic() - _RECENT_SECONDS
        with self._lock:
            recent = [latency for when, latency in self._recent if when >= since]
            return sorted(recent or [latency for _, latency in list(self._recent)[-1:]])

    def __getitem__(self, counter: str) -> int:
        with self._lock:
            return self._counts[counter]

    def summary(self) -> dict[str, Any]:
        """Return the counts, and the latency from capture to delivery."""
        names = ("delivered", "recovered", "retries", "spilled", "skipped", "lost", "unfinished")
        with self._lock:
            counts = {name: self._counts[name] for name in names}
            latency = self._latency.summary()
        return {**counts, "waiting": self.waiting, "on_disk": self.on_disk, "latency": latency}


class Statistics:
    """Thread-safe statistics of one stream.

    Counts: `read`, frames from the source, of which `late` were dropped, `masks` were predicted and `failed` were not.
    `broken` frames could not be decoded and are not counted as read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._waited, self._inference = LatencyDigest(), LatencyDigest()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._started = time.monotonic()
        self._first: float | None = None
        self._last: float | None = None
        self.sinks: list[SinkStatistics] = []

    def sink(self, name: str) -> SinkStatistics:
        """Add a sink and return its statistics."""
        self.sinks.append(SinkStatistics(name))
        return self.sinks[-1]

    def count(self, counter: str, number: int = 1) -> None:
        """Add to `read`, `late`, `failed`, `broken` or `reconnected`."""
        with self._lock:
            self._counts[counter] += number

    def inferred(self, arrived: float, taken: float, inferred: float) -> None:
        """Count a mask. Times of time.monotonic(): frame decoded, inference started, inference finished."""
        with self._lock:
            self._counts["masks"] += 1
            self._waited.add(max(0.0, taken - arrived))
            self._inference.add(inferred - taken)
            self._recent.append(inferred)
            self._first = inferred if self._first is None else self._first
            self._last = inferred

    def __getitem__(self, counter: str) -> int:
        with self._lock:
            return self._counts[counter]

    def summary(self) -> dict[str, Any]:
        """Return all statistics as JSON types."""
        names = ("read", "late", "masks", "failed", "broken", "reconnected")
        with self._lock:
            counts = {name: self._counts[name] for name in names}
            waited, inference = self._waited.summary(), self._inference.summary()
            rate = self._rate()
        return {
            "seconds": round(time.monotonic() - self._started, 3),
            **counts,
            "masks_per_second": None if rate is None else round(rate, 3),
            "recent_masks_per_second": round(self._recent_rate(), 3),
            "waited": waited,
            "inference": inference,
            "sinks": {sink.name: sink.summary() for sink in self.sinks},
        }

    def _rate(self) -> float | None:
        """Return the masks per second between the first and the last one."""
        if self._first is None or self._last is None or self._last <= self._first:
            return None
        return (self._counts["masks"] - 1) / (self._last - self._first)

    def _recent_rate(self) -> float:
        now = time.monotonic()
        with self._lock:
            # At least the last two: one mask may take longer than the time window.
            recent = [when for when in self._recent if when >= now - _RECENT_SECONDS]
            recent = recent if len(recent) >= 2 else list(self._recent)[-2:]
        if len(recent) < 2:
            return 0.0
        # Measured up to now if no mask came for a second, so that the rate of a stalled stream decreases.
        return (len(recent) - 1) / max(now - recent[0], 1e-9) if now - recent[-1] > 1 else _mean_rate(recent)

    def line(self) -> str:
        """Return the status line: recent throughput and latency, and the counts since the start."""
        counts = self.summary()
        parts = [f"{counts['recent_masks_per_second']:.1f} masks/s"]
        recent = max((sink.recent() for sink in self.sinks), key=lambda values: values[-1:], default=[])
        if recent:
            values = [recent[min(len(recent) - 1, int(fraction * len(recent)))] for fraction in (0.5, 0.95, 0.99)]
            parts.append("latency p50/p95/p99 " + "/".join(f"{1000 * value:.0f}" for value in values) + " ms")
        parts.append(f"{counts['masks']} masks")
        parts += [f"{counts[name]} {name}" for name in ("late", "broken", "failed", "reconnected") if counts[name]]
        for name, sink in counts["sinks"].items():
            for counter in ("on_disk", "lost"):
                if sink[counter]:
                    parts.append(f"{name}: {sink[counter]} {counter.replace('_', ' ')}")
        return ", ".join(parts)


def _mean_rate(times: list[float]) -> float:
    return (len(times) - 1) / max(times[-1] - times[0], 1e-9)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def final_report(summary: Mapping[str, Any]) -> str:
    """Format the summary of a stream as text."""
    rate = summary["masks_per_second"]
    lines = [
        f"{summary['read']} frames read, {summary['masks']} masks, {summary['late']} dropped as late, "
        f"{summary['broken']} broken, {summary['failed']} failed, {summary['reconnected']} reconnections",
        f"{summary['seconds']:.1f} s" + (f", {rate:.2f} masks/s" if rate is not None else ""),
    ]
    if summary["inference"]["count"]:
        lines.append(f"inference {_percentiles(summary['inference'])}; queue wait {_percentiles(summary['waited'])}")
    for name, sink in summary["sinks"].items():
        names = ("recovered", "retries", "spilled", "skipped", "lost")
        counts = [f"{sink[counter]} {counter}" for counter in names if sink[counter]]
        if sink["on_disk"]:
            counts.append(f"{sink['on_disk']} left on disk")
        latency = f", capture to delivery {_percentiles(sink['latency'])}" if sink["latency"]["count"] else ""
        lines.append(f"{name}: " + ", ".join([f"{sink['delivered']} delivered", *counts]) + latency)
    return "\n".join(lines)


def _percentiles(digest: Mapping[str, Any]) -> str:
    values = "/".join(f"{digest[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
    return f"p50/p95/p99 {values} ms"
