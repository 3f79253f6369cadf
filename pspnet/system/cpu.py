"""CPU name and number of available cores."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores available to this process: its affinity, limited by the container's quota (cgroup 2 or 1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.floor(quota + 0.5)))


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name, or the architecture if unknown."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _quota(cgroup: Path) -> float | None:
    """CPU quota of the container in cores; None without a readable limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            limit, period = (cgroup / "cpu.max").read_text().split()
        else:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return float(limit) / float(period) if float(limit) > 0 and float(period) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None
