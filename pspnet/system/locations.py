"""Project files next to the package (train.py, configs/, pyproject.toml), in a checkout and in an installed package."""

from __future__ import annotations

import re
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
