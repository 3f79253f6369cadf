"""Numbers of a stream in bounded memory: counts, frames a second, and percentiles of latencies."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

_SHORTEST, _LONGEST = 1e-4, 86400.0  # seconds; what lies outside counts in the first or last bin
_GROWTH = 1.02
_BINS = math.ceil(math.log(_LONGEST / _SHORTEST) / math.log(_GROWTH)) + 1
_RECENT = 256  # frames that the status line looks back on, at most
_RECENT_SECONDS = 10.0


class LatencyDigest:
    """Percentiles of any number of durations, from counts in bins that grow by 2 %: wrong by at most 1 %."""

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, dtype=np.int64)
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        place = 0 if seconds <= _SHORTEST else int(math.log(seconds / _SHORTEST) / math.log(_GROWTH))
        self._bins[min(place, _BINS - 1)] += 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def percentile(self, share: float) -> float | None:
        """The duration that `share` (0 to 1) of all do not exceed, in seconds; None where there is none."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        place = int(np.searchsorted(np.cumsum(self._bins), rank))
        return min(float(_SHORTEST * _GROWTH ** (place + 0.5)), self.longest)

    def summary(self) -> dict[str, Any]:
        """Count, mean, p50, p95, p99 and longest; seconds as milliseconds."""
        if not self.count:
            return {"count": 0}
        shares = {"p50": self.percentile(0.5), "p95": self.percentile(0.95), "p99": self.percentile(0.99)}
        values = {"mean": self.total / self.count, **shares, "longest": self.longest}
        return {"count": self.count, **{f"{name}_ms": _milliseconds(value) for name, value in values.items()}}


class SinkStatistics:
    """What became of the items of one sink."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latency = LatencyDigest()
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # (monotonic, latency)
        self.waiting = 0
        self.on_disk = 0

    def count(self, what: str, number: int = 1) -> None:
        """Add to `delivered`, `recovered` (kept by an earlier run), `retries`, `spilled`, `skipped`, `lost`.

        `unfinished`: the sink could not be closed as it should, or hung.
        """
        with self._lock:
            self._counts[what] += number

    def delivered(self, captured: float) -> None:
        """An item is where it belongs; `captured` as in Frame."""
        latency = max(0.0, time.time() - captured)
        with self._lock:
            self._counts["delivered"] += 1
            self._latency.add(latency)
            self._recent.append((time.monotonic(), latency))

    def recent(self) -> list[float]:
        """The latencies of the last seconds, sorted; the last one where there was none."""
        since = time.monotonic() - _RECENT_SECONDS
        with self._lock:
            last = [latency for when, latency in self._recent if when >= since]
            return sorted(last or [latency for _, latency in list(self._recent)[-1:]])

    def __getitem__(self, what: str) -> int:
        with self._lock:
            return self._counts[what]

    def summary(self) -> dict[str, Any]:
        """Counts, and the latency from capture to delivery."""
        names = ("delivered", "recovered", "retries", "spilled", "skipped", "lost", "unfinished")
        with self._lock:
            counts = {name: self._counts[name] for name in names}
            latency = self._latency.summary()
        return {**counts, "waiting": self.waiting, "on_disk": self.on_disk, "latency": latency}


class Statistics:
    """Numbers of one stream. Every method may be called from any thread.

    Counts: `read` frames that the source gave; of them `late` ones were dropped, `masks` were predicted and `failed`
    ones were not, with a reason told. `broken` frames were not decoded, and are not among the read ones.
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
        """The statistics of a further sink."""
        self.sinks.append(SinkStatistics(name))
        return self.sinks[-1]

    def count(self, what: str, number: int = 1) -> None:
        """Add to `read`, `late`, `failed`, `broken` or `reconnected`."""
        with self._lock:
            self._counts[what] += number

    def inferred(self, arrived: float, taken: float, inferred: float) -> None:
        """A mask was predicted. Readings of time.monotonic(): out of the decoder, into the model, mask there."""
        with self._lock:
            self._counts["masks"] += 1
            self._waited.add(max(0.0, taken - arrived))
            self._inference.add(inferred - taken)
            self._recent.append(inferred)
            self._first = inferred if self._first is None else self._first
            self._last = inferred

    def __getitem__(self, what: str) -> int:
        with self._lock:
            return self._counts[what]

    def summary(self) -> dict[str, Any]:
        """Everything, fit for JSON."""
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
        """Masks a second between the first and the last one."""
        if self._first is None or self._last is None or self._last <= self._first:
            return None
        return (self._counts["masks"] - 1) / (self._last - self._first)

    def _recent_rate(self) -> float:
        now = time.monotonic()
        with self._lock:
            # At least the last two: a mask may take longer than that.
            recent = [when for when in self._recent if when >= now - _RECENT_SECONDS]
            recent = recent if len(recent) >= 2 else list(self._recent)[-2:]
        if len(recent) < 2:
            return 0.0
        # Up to now, so that a stream that stands still is seen to become slower.
        return (len(recent) - 1) / max(now - recent[0], 1e-9) if now - recent[-1] > 1 else _pace(recent)

    def line(self) -> str:
        """The status line: the last seconds' frames a second and latency, and the counts since the start."""
        counts = self.summary()
        parts = [f"{counts['recent_masks_per_second']:.1f} masks/s"]
        recent = max((sink.recent() for sink in self.sinks), key=lambda values: values[-1:], default=[])
        if recent:
            shares = [recent[min(len(recent) - 1, int(share * len(recent)))] for share in (0.5, 0.95, 0.99)]
            parts.append("latency p50/p95/p99 " + "/".join(f"{1000 * value:.0f}" for value in shares) + " ms")
        parts.append(f"{counts['masks']} masks")
        parts += [f"{counts[name]} {name}" for name in ("late", "broken", "failed", "reconnected") if counts[name]]
        for name, sink in counts["sinks"].items():
            for what in ("on_disk", "lost"):
                if sink[what]:
                    parts.append(f"{name}: {sink[what]} {what.replace('_', ' ')}")
        return ", ".join(parts)


def _pace(moments: list[float]) -> float:
    return (len(moments) - 1) / max(moments[-1] - moments[0], 1e-9)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def final_report(summary: Mapping[str, Any]) -> str:
    """The summary of a stream as lines for a person."""
    rate = summary["masks_per_second"]
    lines = [
        f"{summary['read']} frames read, {summary['masks']} masks, {summary['late']} dropped as late, "
        f"{summary['broken']} broken, {summary['failed']} failed, {summary['reconnected']} reconnections",
        f"{summary['seconds']:.1f} s" + (f", {rate:.2f} masks/s" if rate is not None else ""),
    ]
    if summary["inference"]["count"]:
        lines.append("inference " + _shares(summary["inference"]) + "; waited before it " + _shares(summary["waited"]))
    for name, sink in summary["sinks"].items():
        counts = [
            f"{sink[what]} {what}" for what in ("recovered", "retries", "spilled", "skipped", "lost") if sink[what]
        ]
        if sink["on_disk"]:
            counts.append(f"{sink['on_disk']} left on disk")
        latency = ", capture to delivery " + _shares(sink["latency"]) if sink["latency"]["count"] else ""
        lines.append(f"{name}: " + ", ".join([f"{sink['delivered']} delivered", *counts]) + latency)
    return "\n".join(lines)


def _shares(digest: Mapping[str, Any]) -> str:
    values = "/".join(f"{digest[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
    return f"p50/p95/p99 {values} ms"
