"""Project files next to the package (train.py, configs/, pyproject.toml), and the cache folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""Folder of the package."""


def find_project_file(name: str) -> Path | None:
    """Path of a file or folder by its name in the checkout; None if missing.

    A wheel has the scripts in pspnet/scripts and configs/ in pspnet/configs. These are searched first, because files
    next to an installed package belong to other packages.
    """
    candidates = (PACKAGE / "scripts" / name, PACKAGE / name, PACKAGE.parent / name)
    return next((path for path in candidates if path.exists()), None)


def core_requirements(pyproject: Path) -> dict[str, str]:
    """The core dependencies of a pyproject.toml by package name, with their bounds: "safetensors": ">=0.4"."""
    # Python has no TOML parser before 3.11.
    block = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None, f"{pyproject} has no dependencies"
    return dict(re.findall(r'"([\w.-]+)([^"]*)"', block.group(1)))


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
