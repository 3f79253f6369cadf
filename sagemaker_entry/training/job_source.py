"""Source of a training job: train.py, the package, the configs and requirements.txt."""

from __future__ import annotations

import shutil
from pathlib import Path

from pspnet.errors import PspnetError
from pspnet.system.locations import PACKAGE, core_requirements, find_project_file

LARGEST_SOURCE = 2_000_000
"""Bytes. The source is little more than a megabyte of text; more means that data or weights were included."""

_SCRIPTS = ("train.py", "inference.py", "pyproject.toml")
_LEFT_OUT = ("torch", "torchvision", "numpy", "jinja2", "urllib3")
"""Core dependencies that AWS's PyTorch images have in their own version, and those that training does not need."""
_PYTHON38 = {
    "albumentations": "==1.4.18",
    "deflate": ">=0.7,<0.8",
    "safetensors": ">=0.4,<0.6",
    "simplejpeg": ">=1.7.2,<1.7.4",
    "tensorboard": ">=2.14,<2.15",
}
"""The last versions that run in AWS's PyTorch 1.12.1 image (Python 3.8, for ml.p2)."""


def requirements(python38: bool = False) -> str:
    """Return the text of the job's requirements.txt, for the Python 3.8 image of ml.p2 machines or for newer ones."""
    needed = {**core_requirements(_find("pyproject.toml")), **(_PYTHON38 if python38 else {})}
    lines = [f"{name}{bounds}" for name, bounds in sorted(needed.items()) if name not in _LEFT_OUT]
    return "\n".join(["# Packages that AWS's PyTorch images lack or have too old.", *lines, ""])


def stage_source(folder: Path, python38: bool = False) -> list[Path]:
    """Copy exactly what a job needs into an empty folder; return the files, relative to it.

    train.py, inference.py and pyproject.toml (the last two for the model directory), the package with its data files
    but without caches, configs/ and requirements.txt. Works from a checkout and from an installed wheel, which holds
    the scripts and the configs inside the package.

    Raises PspnetError for an incomplete installation, OSError if the folder cannot be written.
    """
    sources = {Path(name): _find(name) for name in _SCRIPTS}
    configs = _find("configs")
    sources.update({Path("configs", path.name): path for path in configs.glob("*.yaml")})
    for path in PACKAGE.rglob("*"):
        name = path.relative_to(PACKAGE)
        if path.is_file() and name.parts[0] not in ("scripts", "configs") and not _is_cache(name):
            sources[PACKAGE.name / name] = path
    for name, path in sorted(sources.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    (folder / "requirements.txt").write_text(requirements(python38), encoding="utf-8")
    staged = sorted([*sources, Path("requirements.txt")])
    size = sum((folder / name).stat().st_size for name in staged)
    assert size < LARGEST_SOURCE, f"the job's source has {size} bytes"
    return staged


def _is_cache(name: Path) -> bool:
    return name.suffix == ".pyc" or any(part == "__pycache__" or part.startswith(".") for part in name.parts)


def _find(name: str) -> Path:
    path = find_project_file(name)
    if path is None:
        raise PspnetError(
            f"{PACKAGE.parent}: {name} is missing next to the package, and a job needs it. Install the package "
            "again, or work in a complete checkout."
        )
    return path
