"""Soak test: steady load on a host for minutes, while the memory of its processes is sampled."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.support.hosts import Host, memory_of
from benchmarks.support.load import Load, Sent, run_load, summary

CLIENTS = 2
_GROUP = 6
# Growth of the fitted line that counts as flat: as a fraction of the memory, and in bytes.
_FLAT_FRACTION, _FLAT_BYTES = 0.01, 4 * 2**20


def run(host: Host, body: bytes, seconds: float, seconds_between: float = 5.0) -> dict[str, Any]:
    """Send a host mixed requests and return its memory over time, its statuses and latencies.

    The first third is left out of the slope, since allocators and caches fill then.
    """
    requests, workers = mixture(body), host.workers()
    loads: list[Load] = []
    load = threading.Thread(
        target=lambda: loads.append(run_load(host, CLIENTS, seconds, lambda number: requests[number % len(requests)]))
    )
    samples: list[tuple[float, dict[int, int]]] = []
    start = time.monotonic()
    load.start()
    while load.is_alive():
        samples.append((time.monotonic() - start, {pid: memory_of(pid) for pid in host.processes()}))
        load.join(seconds_between)
    totals = [(when, sum(sizes.values())) for when, sizes in samples]
    commands = host.processes()
    found = {
        **slope(totals, seconds / 3),
        "minutes": round(seconds / 60, 2),
        "clients": CLIENTS,
        "statuses": {str(status): number for status, number in sorted(loads[0].statuses.items())},
        "latency_ms": summary(loads[0].milliseconds),
        "same_workers": host.workers() == workers,
        "mib_at_the_end": {f"{pid} {commands.get(pid, '')[-50:]}": _mib(size) for pid, size in samples[-1][1].items()},
        "mib": [(round(when, 1), _mib(size)) for when, size in totals],
    }
    judged = {True: "flat", False: "GROWS", None: "too short to judge"}[found["flat"]]
    print(
        f"\nSoak of {host.name}, {found['minutes']} minutes: memory {judged}, {found['mib_per_minute']} MiB a minute,"
    )
    restarts = "the same workers" if found["same_workers"] else "OTHER WORKERS"
    span = f"{found.get('mib_from')} to {found.get('mib_to')} MiB"
    print(f"  {span}, {restarts}, statuses {found['statuses']}", flush=True)
    return found


def slope(totals: list[tuple[float, int]], start: float) -> dict[str, Any]:
    """Fit a line through (seconds, bytes) from `start` on: MiB at its ends, MiB a minute, and whether it is flat.

    It is fitted to the minimum of every six samples, since the memory of running requests comes and goes.
    """
    later = [entry for entry in totals if entry[0] >= start]
    groups = [later[first : first + _GROUP] for first in range(0, len(later) - _GROUP + 1, _GROUP)]
    if len(groups) < 3:
        return {"flat": None, "mib_per_minute": None}
    times, sizes = np.array([(group[0][0], min(size for _, size in group)) for group in groups], dtype=np.float64).T
    rate, intercept = np.polyfit(times, sizes, 1)
    growth = rate * (times[-1] - times[0])
    return {
        "flat": bool(growth <= max(_FLAT_BYTES, _FLAT_FRACTION * sizes.mean())),
        "mib_per_minute": round(60 * rate / 2**20, 4),
        "mib_from": _mib(rate * times[0] + intercept),
        "mib_to": _mib(rate * times[-1] + intercept),
    }


def mixture(body: bytes) -> list[Sent]:
    """Fifty requests: the frame, five other sizes of it with several Accept types, and a damaged file."""
    with Image.open(io.BytesIO(body)) as image:
        frame = image.convert("RGB")
    requests = [Sent(body)] * 50
    accepts = ("image/png", "application/json", "image/jpeg", "image/png; palette=true", "image/png")
    for number, accept in enumerate(accepts):
        width, height = (max(32, round(side * (0.5 + 0.13 * number))) for side in frame.size)
        buffer = io.BytesIO()
        frame.resize((width, height)).save(buffer, format="JPEG", quality=90)
        requests[4 + 10 * number] = Sent(buffer.getvalue(), accept=accept)
    requests[49] = Sent(body[: len(body) // 2])
    return requests


def _mib(size: float) -> float:
    return round(size / 2**20, 1)
