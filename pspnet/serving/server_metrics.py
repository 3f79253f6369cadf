"""Metrics of all workers in a small shared file, and their Prometheus text for /metrics.

Every worker has a row of float64 values that only it writes, so counting needs no lock. Counters survive the worker:
its replacement continues with the same row. Any worker can report the totals by summing the rows.
"""

from __future__ import annotations

import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

STAGES = ("queue", "decode", "predict", "encode", "total")
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
IMAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STARTING, READY, STOPPING = 0.0, 1.0, 2.0

# Offsets within a row. A histogram holds its buckets, one for larger values, and the sum.
_PID, _HEARTBEAT, _STATE, _WAITING, _ACTIVE, _BYTES_IN, _BYTES_OUT, _RESTARTS = range(8)
_STATUS = 8  # + status: 0..599
_STAGE = _STATUS + 600
_STAGE_WIDTH = len(SECONDS) + 2
_BATCH = _STAGE + len(STAGES) * _STAGE_WIDTH
_WIDTH = _BATCH + len(IMAGES) + 2


class Row:
    """Metrics of one worker. Written by one process; within it, each value by one thread at a time."""

    def __init__(self, values: memoryview[float]) -> None:
        self._values = values

    def begin(self) -> None:
        """Attach a new process to the row: counters are kept, states are reset."""
        self._values[_STATE] = STARTING
        self._values[_WAITING] = self._values[_ACTIVE] = 0.0
        self._values[_PID] = float(os.getpid())
        self.heartbeat()

    def heartbeat(self) -> None:
        """Record that the event loop runs. Monotonic time is the same for all processes of a machine."""
        self._values[_HEARTBEAT] = time.monotonic()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self._values[_HEARTBEAT]

    @property
    def pid(self) -> int:
        return int(self._values[_PID])

    @property
    def state(self) -> float:
        return float(self._values[_STATE])

    @state.setter
    def state(self, state: float) -> None:
        self._values[_STATE] = state

    def mark_dead(self) -> None:
        """Reset the state and count a restart. Called by the supervisor when the worker has died."""
        self._values[_STATE] = STARTING
        self._values[_WAITING] = self._values[_ACTIVE] = self._values[_PID] = 0.0
        self._values[_RESTARTS] += 1

    def set_depth(self, waiting: int, active: int) -> None:
        """Set the numbers of queued and of active requests."""
        self._values[_WAITING], self._values[_ACTIVE] = float(waiting), float(active)

    def count_request(self, status: int, received: int, sent: int, stages: Iterable[tuple[str, float]]) -> None:
        """Count an answered request: status, body bytes, and seconds by stage."""
        self._values[_STATUS + min(max(status, 0), 599)] += 1
        self._values[_BYTES_IN] += received
        self._values[_BYTES_OUT] += sent
        for stage, seconds in stages:
            self._observe(_STAGE + STAGES.index(stage) * _STAGE_WIDTH, SECONDS, seconds)

    def count_batch(self, images: int) -> None:
        """Count a batch by its number of images."""
        self._observe(_BATCH, IMAGES, float(images))

    def _observe(self, start: int, bounds: Sequence[float], value: float) -> None:
        self._values[start + bisect_left(bounds, value)] += 1
        self._values[start + len(bounds) + 1] += value


class Table:
    """Rows of all workers, in a shared file; in memory without `path`."""

    def __init__(self, workers: int = 1, path: Path | None = None) -> None:
        size = workers * _WIDTH * 8
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            with open(path, "r+b") as file:
                if os.fstat(file.fileno()).st_size < size:
                    file.truncate(size)
                self._map = mmap.mmap(file.fileno(), size)
        values = memoryview(self._map).cast("d")
        self._values = values
        self.rows = [Row(values[index * _WIDTH : (index + 1) * _WIDTH]) for index in range(workers)]

    @property
    def starting_up(self) -> bool:
        """True while a worker of the first start is not ready yet."""
        rows = (self._values[index * _WIDTH : (index + 1) * _WIDTH] for index in range(len(self.rows)))
        return any(row[_STATE] == STARTING and row[_RESTARTS] == 0 for row in rows)

    def render(self) -> str:
        """Return the totals in Prometheus' text format."""
        rows = [self._values[index * _WIDTH : (index + 1) * _WIDTH].tolist() for index in range(len(self.rows))]
        total = [sum(column) for column in zip(*rows)]
        lines: list[str] = []
        _family(lines, "pspnet_requests_total", "counter", "Answers by HTTP status; 499: client disconnected.")
        for status in range(600):
            if total[_STATUS + status] or status == 200:
                lines.append(f'pspnet_requests_total{{status="{status}"}} {total[_STATUS + status]:.0f}')
        _family(lines, "pspnet_stage_seconds", "histogram", "Seconds of a request by stage.")
        for index, stage in enumerate(STAGES):
            start = _STAGE + index * _STAGE_WIDTH
            _histogram(lines, "pspnet_stage_seconds", f'stage="{stage}",', total, start, SECONDS)
        _family(lines, "pspnet_batch_images", "histogram", "Images per batch.")
        _histogram(lines, "pspnet_batch_images", "", total, _BATCH, IMAGES)
        for name, kind, text, offset in _SUMS:
            _family(lines, name, kind, text)
            lines.append(f"{name} {total[offset]:.0f}")
        ready = sum(row[_STATE] == READY for row in rows)
        _family(lines, "pspnet_workers_ready", "gauge", "Workers whose model is ready.")
        lines.append(f"pspnet_workers_ready {ready}")
        _family(lines, "pspnet_worker_resident_bytes", "gauge", "Resident memory of each worker.")
        for index, row in enumerate(rows):
            lines.append(f'pspnet_worker_resident_bytes{{worker="{index}"}} {_resident_bytes(int(row[_PID]))}')
        return "\n".join(lines) + "\n"


_SUMS = (
    ("pspnet_request_bytes_total", "counter", "Bytes of request bodies.", _BYTES_IN),
    ("pspnet_response_bytes_total", "counter", "Bytes of answers.", _BYTES_OUT),
    ("pspnet_worker_restarts_total", "counter", "Restarts of workers.", _RESTARTS),
    ("pspnet_queue_depth", "gauge", "Queued requests.", _WAITING),
    ("pspnet_active_requests", "gauge", "Requests in the current batch.", _ACTIVE),
)


def _family(lines: list[str], name: str, kind: str, text: str) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _histogram(
    lines: list[str], name: str, labels: str, values: Sequence[float], start: int, bounds: Sequence[float]
) -> None:
    count = 0.0
    for offset, bound in enumerate((*bounds, float("inf"))):
        count += values[start + offset]
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f'{name}_bucket{{{labels}le="{text}"}} {count:.0f}')
    suffix = f"{{{labels[:-1]}}}" if labels else ""
    lines.append(f"{name}_sum{suffix} {values[start + len(bounds) + 1]:.9g}")
    lines.append(f"{name}_count{suffix} {count:.0f}")


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it has ended or the system does not report it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
