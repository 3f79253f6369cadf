"""Steady load on a host for minutes, while the memory of its processes is read: it must not grow."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.support.hosts import Host, memory_of
from benchmarks.support.load import Load, Sent, many_at_once, summary

CLIENTS = 2
SECONDS_BETWEEN = 5.0
_GROUP = 6
# Growth that is taken for none: of the fitted line over the judged part, as a share of the memory and in bytes.
_FLAT_SHARE, _FLAT_BYTES = 0.01, 4 * 2**20


def run(host: Host, body: bytes, seconds: float, seconds_between: float = SECONDS_BETWEEN) -> dict[str, Any]:
    """Load a host with frames, now and then another size or a damaged file; returns what its memory did.

    The first third is left out of the slope: allocators and caches fill there.
    """
    requests = mixture(body)
    workers = host.workers()
    loads: list[Load] = []
    load = threading.Thread(
        target=lambda: loads.append(
            many_at_once(host, CLIENTS, seconds, lambda number: requests[number % len(requests)])
        )
    )
    samples: list[tuple[float, dict[int, int]]] = []
    start = time.monotonic()
    load.start()
    while load.is_alive():
        samples.append((time.monotonic() - start, {pid: memory_of(pid) for pid in host.processes()}))
        load.join(seconds_between)
    commands, last = host.processes(), samples[-1][1]
    totals = [(when, sum(sizes.values())) for when, sizes in samples]
    found = {
        **slope(totals, seconds / 3),
        "minutes": round(seconds / 60, 2),
        "clients": CLIENTS,
        "statuses": {str(status): number for status, number in sorted(loads[0].statuses.items())},
        "latency_ms": summary(loads[0].milliseconds),
        "same_workers": host.workers() == workers,
        "mib_at_the_end": {f"{pid} {commands.get(pid, '')[-50:]}": _mib(size) for pid, size in last.items()},
        "mib": [(round(when, 1), _mib(size)) for when, size in totals],
    }
    _print(host.name, found)
    return found


def slope(totals: list[tuple[float, int]], start: float) -> dict[str, Any]:
    """Straight line through (seconds, bytes) from `start` on: MiB at its ends, MiB a minute, and whether it is flat.

    It goes through the least of every six samples: what a request needs while it is computed comes and goes.
    """
    later = [entry for entry in totals if entry[0] >= start]
    groups = [later[first : first + _GROUP] for first in range(0, len(later) - _GROUP + 1, _GROUP)]
    judged = [(group[0][0], min(size for _, size in group)) for group in groups]
    if len(judged) < 3:
        return {"flat": None, "mib_per_minute": None}
    times, sizes = np.array(judged, dtype=np.float64).T
    rate, intercept = np.polyfit(times, sizes, 1)
    growth = rate * (times[-1] - times[0])
    return {
        "flat": bool(growth <= max(_FLAT_BYTES, _FLAT_SHARE * sizes.mean())),
        "mib_per_minute": round(60 * rate / 2**20, 4),
        "mib_from": _mib(rate * times[0] + intercept),
        "mib_to": _mib(rate * times[-1] + intercept),
    }


def mixture(body: bytes) -> list[Sent]:
    """Fifty requests: the frame, five other sizes of it in several forms, and a damaged file."""
    with Image.open(io.BytesIO(body)) as image:
        frame = image.convert("RGB")
    accepts = ("image/png", "application/json", "image/jpeg", "image/png; palette=true", "image/png")
    others = []
    for number, accept in enumerate(accepts):
        width, height = (max(32, round(side * (0.5 + 0.13 * number))) for side in frame.size)
        buffer = io.BytesIO()
        frame.resize((width, height)).save(buffer, format="JPEG", quality=90)
        others.append(Sent(buffer.getvalue(), accept=accept))
    requests = [Sent(body)] * 50
    requests[4::10] = others
    requests[49] = Sent(body[: len(body) // 2])
    return requests


def _mib(size: float) -> float:
    return round(size / 2**20, 1)


def _print(name: str, found: dict[str, Any]) -> None:
    judged = {True: "flat", False: "GROWS", None: "too short to judge"}[found["flat"]]
    workers = "the same workers" if found["same_workers"] else "OTHER WORKERS"
    print(f"\nSoak of {name}, {found['minutes']} minutes: memory {judged}, {found['mib_per_minute']} MiB a minute,")
    print(
        f"  {found.get('mib_from')} to {found.get('mib_to')} MiB, {workers}, statuses {found['statuses']}", flush=True
    )
