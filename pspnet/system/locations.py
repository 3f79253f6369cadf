"""Paths of train.py, inference.py and configs/, in a checkout and in an installed package."""

from __future__ import annotations

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
