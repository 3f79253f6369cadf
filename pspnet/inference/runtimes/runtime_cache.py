"""Cache folder for compiled graphs and runtime choices of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """PSPNET_CACHE, else `pspnet` in XDG_CACHE_HOME or ~/.cache. It may be missing or read-only."""
    if env.get("PSPNET_CACHE"):
        return Path(env["PSPNET_CACHE"])
    if env.get("XDG_CACHE_HOME"):
        return Path(env["XDG_CACHE_HOME"]) / "pspnet"
    try:
        return Path.home() / ".cache" / "pspnet"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path("/nonexistent")
