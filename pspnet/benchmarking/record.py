"""Record of a benchmark run: command, machine and versions. Part of every benchmark's output."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pspnet.system.atomic_files import atomic_write
from pspnet.system.cpu import available_cores, processor_name

_PACKAGES = (
    "torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "albumentations", "simplejpeg", "deflate",
    "torchmetrics", "onnxruntime", "openvino", "nncf", "tensorrt", "segmentation-models-pytorch", "mxnet", "gluoncv",
    "starlette", "uvicorn", "sagemaker-pytorch-inference", "torchserve",
)  # fmt: skip
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
    """Processor, available cores, memory, system and load; threads and GPU if torch is loaded."""
    found = {
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": load_average(),
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(python: str | Path = sys.executable) -> dict[str, str]:
    """Versions of Python and of the relevant packages in the environment of an interpreter (3.8 or newer)."""
    result = subprocess.run(
        [str(python), "-c", _READ_VERSIONS, *_PACKAGES], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, str] = json.loads(result.stdout)
    return found


def run_record(command: str | None = None) -> dict[str, Any]:
    """Command, time, machine and versions of this run; `command` defaults to this process's own."""
    return {
        "command": command or shlex.join(["python", *sys.argv]),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(),
        "versions": versions(),
    }


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a benchmark's JSON file atomically; raises OSError."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_average() -> list[float]:
    """Load averages of the last 1, 5 and 15 minutes; empty on Windows."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def machine_text(found: dict[str, Any]) -> str:
    """One-line description of a record's `machine`."""
    parts = [found["processor"], f"{found['cores']} cores", *([found["gpu"]] if "gpu" in found else [])]
    parts += [f"{found['memory_gib']} GiB"] if found["memory_gib"] else []
    parts += [f"load {found['load_average'][0]}"] if found["load_average"] else []
    return ", ".join(parts)


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
