"""Peak memory of a process, and measurements in child processes, since the peak of a process cannot be reset."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pspnet.errors import PspnetError


class ChildError(PspnetError):
    """A child process that ended without a result."""


def peak_mib() -> float | None:
    """Peak memory of this process in MiB; None on Windows."""
    # getrusage on Linux also counts the parent's memory at the time of the fork.
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, the BSDs KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def current_mib() -> float | None:
    """Current memory of this process in MiB; None on systems other than Linux."""
    return _status("VmRSS")


def _status(name: str) -> float | None:
    """A value of /proc/self/status in MiB."""
    path = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return round(int(found[1]) / 2**10, 1) if found else None


def ask_child(
    command: Sequence[str], seconds: float = 600.0, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a command whose last line of output is a JSON mapping, and return that mapping.

    The environment is this process's by default. Raises ChildError, with the last line of output, if the command
    fails, prints no such line or takes longer than `seconds`.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"{Path(command[0]).name} took longer than {seconds:.0f} s.") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        try:
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        except ValueError:
            pass
    last = (done.stderr.strip().splitlines() or lines or ["no output"])[-1]
    raise ChildError(f"a process ended with {done.returncode}: {last}")
