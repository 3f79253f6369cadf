"""Serving code of a model directory, so that it deploys as it is, and reading of packed models."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pspnet.artifact.file_names import ARCHIVE_NAME, CODE_NAME, CONFIG_NAME, WEIGHTS_NAME
from pspnet.artifact.model_directory import read_algorithm
from pspnet.errors import WeightsError
from pspnet.system.locations import PACKAGE, core_requirements, find_project_file

# Files of the package needed for prediction: no training, evaluation or data sets.
_SERVED = (
    "__init__.py", "classes.py", "errors.py", "system/__init__.py", "system/atomic_files.py", "system/cpu.py",
    "system/device.py", "system/locations.py", "system/precision.py", "config/__init__.py", "config/problems.py",
    "config/settings.py", "config/values.py", "data/__init__.py", "data/io/*.py", "models/*.py",
    "models/fused/*.py", "artifact/__init__.py", "artifact/bundle.py", "artifact/export_record.py",
    "artifact/file_names.py", "artifact/model_directory.py", "artifact/published.py", "inference/*.py",
    "inference/runtimes/*.py", "masks/__init__.py", "masks/blending.py", "masks/class_counts.py", "masks/png.py",
    "serving/__init__.py", "serving/protocol/*.py",
    "serving/serve_settings.py", "serving/loading.py",
)  # fmt: skip
_REQUIREMENTS_HEAD = "# Installed by the endpoint's container in addition to the torch, numpy and pillow of its image."
# Size limits of unpacked members: far above any model, far below any disk.
_MAX_BYTES = {CONFIG_NAME: 16_777_216, WEIGHTS_NAME: 4_294_967_296}
_MAX_REST = 268_435_456


def served_files() -> list[Path]:
    """Return the files of the package that an endpoint needs, relative to the package."""
    return sorted(path.relative_to(PACKAGE) for pattern in _SERVED for path in PACKAGE.glob(pattern))


def write_code(model_dir: Path) -> Path:
    """Write `code/` (inference.py, the package, requirements.txt) into a model directory and return its path.

    Replaces an older `code/`. Raises WeightsError if a file of the project is missing and OSError if writing fails.
    """
    handlers, pyproject = _find("inference.py", model_dir), _find("pyproject.toml", model_dir)
    target, building = model_dir / CODE_NAME, model_dir / f".{CODE_NAME}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    try:
        for name in served_files():
            copy = building / PACKAGE.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PACKAGE / name, copy)
        shutil.copyfile(handlers, building / "inference.py")
        (building / "requirements.txt").write_text(requirements(pyproject, read_algorithm(model_dir)), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _find(name: str, model_dir: Path) -> Path:
    path = find_project_file(name)
    if path is None:
        raise WeightsError(
            f"{PACKAGE.parent}: {name} is missing next to the package, so the model in {model_dir} has no serving "
            "code. Copy the project again; the model itself is complete."
        )
    return path


def requirements(pyproject: Path, algorithm: str) -> str:
    """The text of `code/requirements.txt`: imports of the served files that the inference images lack."""
    lines = [_REQUIREMENTS_HEAD, f"safetensors{core_requirements(pyproject)['safetensors']}"]
    # For torchvision's networks. Unpinned, so that pip keeps the version that matches the image's torch.
    lines += [] if algorithm == "psp" else ["torchvision"]
    return "\n".join([*lines, ""])


@contextlib.contextmanager
def unpacked(directory: Path) -> Iterator[Path]:
    """Yield a model directory, or the unpacked copy of one that holds only model.tar.gz (a job's output on S3).

    Extracts only weights and config. Raises WeightsError if the archive is damaged or one of the two is not a plain
    file or too large.
    """
    archive = directory / ARCHIVE_NAME
    if (directory / CONFIG_NAME).is_file() or not archive.is_file():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="pspnet-model-") as folder:
        _unpack(archive, Path(folder))
        yield Path(folder)


def _unpack(archive: Path, folder: Path) -> None:
    """Extract the first member of each name. Read the archive to its end, which has the checksum."""
    missing = set(_MAX_BYTES)
    try:
        with gzip.open(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                name = member.name[2:] if member.name.startswith("./") else member.name
                if name in missing:
                    _copy_out(tar, member, folder / name, archive)
                    missing.remove(name)
                if not missing:
                    break
            _read_rest(stream, archive)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise WeightsError(f"{archive}: not a readable model archive ({error}). Copy it again.") from error


def _read_rest(stream: gzip.GzipFile, archive: Path) -> None:
    """Verify the checksum: undetected damage in the weights would only show in wrong masks."""
    size = 0
    while block := stream.read(1_048_576):
        size += len(block)
        if size > _MAX_REST:
            raise WeightsError(
                f"{archive}: holds more than {_MAX_REST:,} bytes besides {CONFIG_NAME} and {WEIGHTS_NAME}. "
                "Is it a model?"
            )


def _copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: Path) -> None:
    """Extract a plain file. A link could point elsewhere; a sparse or oversized member could fill the disk."""
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise WeightsError(f"{archive}: its {target.name} is a link or special file; expected a plain file.")
    largest = _MAX_BYTES[target.name]
    if member.size > largest:
        raise WeightsError(
            f"{archive}: its {target.name} has {member.size:,} bytes; expected at most {largest:,}. Is it a model?"
        )
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file)
