"""How much memory a case needs at most: each in a process of its own, since nothing gives back a process's peak."""

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
    """A process that was to measure something ended without an answer."""


def peak_mib() -> float | None:
    """The most memory that this process ever held, in MiB; None where the system doesn't say (Windows)."""
    # getrusage on Linux also counts what the parent held when it made this process.
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
    """The memory that this process holds now, in MiB; None where the system doesn't say (all but Linux)."""
    return _status("VmRSS")


def _status(name: str) -> float | None:
    """A figure of /proc/self/status in MiB."""
    path = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return round(int(found[1]) / 2**10, 1) if found else None


def ask_child(
    command: Sequence[str], seconds: float = 600.0, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a command that ends by printing one line of JSON, a mapping, and return that.

    It gets this process's environment if none is given.

    Raises ChildError, with the last line it said, where it fails, says no such line or takes longer than `seconds`.
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
    said = (done.stderr.strip().splitlines() or lines or ["nothing"])[-1]
    raise ChildError(f"a process ended with {done.returncode} and said: {said}")
