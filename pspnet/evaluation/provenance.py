"""provenance.json: origin of an evaluation's scores, for judging and reproducing them.

Command, date, versions, machine, model and data, each with a fingerprint:

- of a model, the SHA-256 of its weights file;
- of images and of annotations, the SHA-256 over the lines `<file stem> <SHA-256 of the file>`, each with a line feed,
  sorted by stem. Folders and times are not included: a copy of the data has the same fingerprint.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import pspnet
from pspnet.data.channels import Pair
from pspnet.errors import DataError
from pspnet.evaluation.partial_results import file_hash
from pspnet.system.atomic_files import atomic_write

FORMAT = "pspnet-provenance-1"
PROVENANCE_NAME = "provenance.json"
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless")


def data_fingerprint(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the number of pairs and the fingerprints of images and annotations; reads all files once."""
    digests = {"images": hashlib.sha256(), "annotations": hashlib.sha256()}
    for pair in sorted(pairs, key=lambda pair: pair.stem):
        for key, path in (("images", pair.image), ("annotations", pair.annotation)):
            digests[key].update(f"{pair.stem} {file_hash(path)}\n".encode())
    return {"count": len(pairs), **{key: digest.hexdigest() for key, digest in digests.items()}}


def versions() -> dict[str, str]:
    """Return the versions of this package, its numeric dependencies and Python; missing packages are left out."""
    found = {"pspnet": pspnet.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "torch": str(torch.__version__), "python": platform.python_version()}


def describe_device(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: use the processor's short name
    return f"{name}, {torch.get_num_threads()} threads"


def write_provenance(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts with the date atomically; OSError if that fails."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {"format": FORMAT, "date": now, "versions": versions(), "system": platform.platform(), **facts}
    with atomic_write(folder / PROVENANCE_NAME) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read provenance.json; empty if the file is missing, DataError if it is damaged or of another format."""
    path = folder / PROVENANCE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); evaluate again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: expected the format {FORMAT}; written by another program or version: evaluate again.")
    return content
