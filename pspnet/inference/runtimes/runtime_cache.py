"""The folder in which this machine keeps what it found out or compiled once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """PSPNET_CACHE, else `pspnet` in XDG_CACHE_HOME or ~/.cache. The folder need not exist, nor be writable."""
    if env.get("PSPNET_CACHE"):
        return Path(env["PSPNET_CACHE"])
    if env.get("XDG_CACHE_HOME"):
        return Path(env["XDG_CACHE_HOME"]) / "pspnet"
    try:
        return Path.home() / ".cache" / "pspnet"
    except RuntimeError:  # a user without a home, as in some containers
        return Path("/nonexistent")
