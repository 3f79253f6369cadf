"""Where the files beside the package are: train.py, inference.py and configs/, in a checkout and where installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of the package itself."""


def find_beside(name: str) -> Path | None:
    """A file or folder of the project by its name in the checkout; None where it was left out.

    A wheel holds the scripts in pspnet/scripts and configs/ in pspnet/configs. These are looked at first, because what
    lies beside an installed package belongs to others.
    """
    candidates = (PACKAGE / "scripts" / name, PACKAGE / name, PACKAGE.parent / name)
    return next((path for path in candidates if path.exists()), None)
