"""The code that travels with a model, so that the model directory deploys as it is, and models that arrive packed."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pspnet.artifact.model_directory import CONFIG_NAME, WEIGHTS_NAME, read_algorithm
from pspnet.errors import WeightsError
from pspnet.system.locations import PACKAGE, find_beside

CODE_NAME = "code"
ARCHIVE_NAME = "model.tar.gz"

# What predicting needs of the package: no training, no evaluation, no reading of data sets.
_SERVED = (
    "__init__.py", "classes.py", "errors.py", "system/__init__.py", "system/atomic_files.py", "system/cpu.py",
    "system/locations.py", "system/precision.py", "config/__init__.py", "config/problems.py", "config/settings.py",
    "config/values.py", "data/__init__.py", "data/io/*.py", "models/*.py", "models/fused/*.py", "artifact/*.py",
    "inference/*.py", "inference/runtimes/*.py", "masks/__init__.py", "masks/class_counts.py", "masks/png.py",
    "serving/__init__.py", "serving/protocol/*.py", "serving/serve_settings.py", "serving/loading.py",
)  # fmt: skip
# What the packages of _SERVED import and the inference images lack.
_REQUIREMENTS = """\
# Installed by the endpoint's container beside the torch, numpy and pillow that its image holds.
safetensors>=0.4
"""
# torchvision's own networks need it; a version here would have pip replace the one that belongs to the image's torch.
_TORCHVISION = "torchvision\n"
# Largest members that are unpacked: far above any model, far below any disk.
_MAX_BYTES = {CONFIG_NAME: 16_777_216, WEIGHTS_NAME: 4_294_967_296}
_MAX_REST = 268_435_456


def served_files() -> list[Path]:
    """The package's files that an endpoint needs, relative to the package."""
    return sorted(path.relative_to(PACKAGE) for pattern in _SERVED for path in PACKAGE.glob(pattern))


def write_code(model_dir: Path) -> Path:
    """Write `code/` (inference.py, the package, requirements.txt) into a model directory; the folder's path.

    An older `code/` is replaced. Raises WeightsError where inference.py is missing, OSError where nothing can be
    written.
    """
    handlers = find_beside("inference.py")
    if handlers is None:
        raise WeightsError(
            f"{PACKAGE.parent}: inference.py is missing beside the package, so the model in {model_dir} has no code to "
            "be deployed with. Copy the project again; the model itself is complete."
        )
    target, building = model_dir / CODE_NAME, model_dir / f".{CODE_NAME}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    try:
        for name in served_files():
            copy = building / PACKAGE.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PACKAGE / name, copy)
        shutil.copyfile(handlers, building / "inference.py")
        (building / "requirements.txt").write_text(requirements(read_algorithm(model_dir)), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def requirements(algorithm: str) -> str:
    """The text of `code/requirements.txt` for a model of that algorithm."""
    return _REQUIREMENTS + ("" if algorithm == "psp" else _TORCHVISION)


@contextlib.contextmanager
def unpacked(directory: Path) -> Iterator[Path]:
    """A model directory, or for one that only holds model.tar.gz (as a job leaves it on S3) its unpacked copy.

    Takes weights and config from the archive and nothing else. Raises WeightsError for an archive that is damaged or
    in which one of the two is no plain file or absurdly large.
    """
    archive = directory / ARCHIVE_NAME
    if (directory / CONFIG_NAME).is_file() or not archive.is_file():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="pspnet-model-") as folder:
        _unpack(archive, Path(folder))
        yield Path(folder)


def _unpack(archive: Path, folder: Path) -> None:
    """The first member of each of the two names. The archive is read to its end, where its checksum stands."""
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
    """Without the checksum, damage in the weights would show as nothing but wrong masks."""
    size = 0
    while block := stream.read(1_048_576):
        size += len(block)
        if size > _MAX_REST:
            raise WeightsError(
                f"{archive}: holds more than {_MAX_REST:,} bytes besides {CONFIG_NAME} and {WEIGHTS_NAME}. "
                "Is it a model?"
            )


def _copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: Path) -> None:
    """A link would lead elsewhere, and a sparse file or a claimed size could fill the disk from a few bytes."""
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise WeightsError(f"{archive}: {target.name} in it is a link or another special file; expected a plain one.")
    largest = _MAX_BYTES[target.name]
    if member.size > largest:
        raise WeightsError(
            f"{archive}: {target.name} in it has {member.size:,} bytes; expected {largest:,} at most. Is it a model?"
        )
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file)
