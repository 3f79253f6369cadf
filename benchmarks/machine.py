"""What a figure was measured on: machine, versions, command. Part of every benchmark's output."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "pillow", "fastapi", "uvicorn", "sagemaker-pytorch-inference", "torchserve")
_READ_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, system, and how busy it was."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions(python: str | Path = sys.executable) -> dict[str, str]:
    """Versions of Python and of the packages that count, in the environment of an interpreter."""
    result = subprocess.run(
        [str(python), "-c", _READ_VERSIONS, *_PACKAGES], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, str] = json.loads(result.stdout)
    return found


def run_record() -> dict[str, Any]:
    """Command, time and machine of this run."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
