"""`lambda_package`: pack the mask summary function as a zip file, and write its CloudFormation template."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspnet.config.command_line import parse_settings
from pspnet.config.settings import Settings, setting
from pspnet.errors import PspnetError
from pspnet.system.atomic_files import atomic_write

CODE = (
    "pspnet/__init__.py",
    "pspnet/classes.py",
    "pspnet/config/__init__.py",
    "pspnet/config/problems.py",
    "pspnet/config/settings.py",
    "pspnet/config/values.py",
    "pspnet/errors.py",
    "pspnet/driving/__init__.py",
    "pspnet/driving/corridor.py",
    "pspnet/driving/mask_summary.py",
    "pspnet/driving/obstacle.py",
    "pspnet/driving/view.py",
    "pspnet/masks/__init__.py",
    "pspnet/masks/class_counts.py",
    "pspnet/masks/codec.py",
    "pspnet/masks/png.py",
    "pspnet/masks/reader.py",
    "pspnet/masks/segment.py",
    "pspnet/masks/storage.py",
    "sagemaker_entry/__init__.py",
    "sagemaker_entry/lambda_handler.py",
    "sagemaker_entry/pipeline/__init__.py",
    "sagemaker_entry/pipeline/handler.py",
    "sagemaker_entry/pipeline/lambda_masks.py",
    "sagemaker_entry/pipeline/lambda_settings.py",
)
"""The project's files that the function imports; a test checks that these are exactly the files."""
PACKAGES = ("numpy", "pillow")
TEMPLATE = "pipeline_template.yaml"

_ROOT = Path(__file__).resolve().parents[2]
_PLATFORMS = {"x86_64": "manylinux2014_x86_64", "arm64": "manylinux2014_aarch64"}
_LEFT_OUT = ("__pycache__", "tests", "bin")
# AWS Lambda's quotas page: a package with all its layers, unzipped.
LARGEST_UNZIPPED = 250 * 1024 * 1024


@dataclass(frozen=True, init=False)
class PackageSettings(Settings):
    """Settings of `lambda_package`."""

    output: Path = setting(..., "the zip file to write")
    template: Path | None = setting(None, "also write the pipeline's CloudFormation template to this file")
    architecture: Literal["arm64", "x86_64"] = setting("x86_64", "CPU type")
    python: Literal["3.12", "3.13"] = setting("3.12", "the function's Python")
    code_only: bool = setting(False, "omit NumPy and Pillow, for a layer with them")


def lambda_package_command(argv: Sequence[str], command: str) -> int:
    """Write the package, print its size and the next command."""
    settings = parse_settings(PackageSettings, argv, command, "Pack the function that summarises masks on S3.")
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder) / "packages"
        packages.mkdir()
        if not settings.code_only:
            install_packages(packages, settings.architecture, settings.python)
        unzipped = write_package(settings.output, packages)
    if unzipped > LARGEST_UNZIPPED:
        raise PspnetError(
            f"{settings.output}: {unzipped} bytes unzipped, above Lambda's limit of {LARGEST_UNZIPPED}; give "
            "--code_only and put NumPy and Pillow into a layer."
        )
    digest = hashlib.sha256(settings.output.read_bytes()).hexdigest()[:12]
    print(f"Wrote {settings.output}: {settings.output.stat().st_size:,} bytes, {unzipped:,} unzipped.")
    if settings.template is not None:
        with atomic_write(settings.template) as temporary:
            temporary.write_bytes((Path(__file__).parent / TEMPLATE).read_bytes())
        print(f"Wrote {settings.template}.")
    print(f"Next: aws s3 cp {settings.output} s3://CODE_BUCKET/pspnet-summaries-{digest}.zip")
    return 0


def install_packages(folder: Path, architecture: str, python: str) -> None:
    """Install NumPy and Pillow for Lambda's Linux, on any platform. Raises PspnetError."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    command += ["--platform", _PLATFORMS[architecture], "--platform", _newer(architecture), "--python-version", python]
    command += ["--implementation", "cp", "--only-binary=:all:", *PACKAGES]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PspnetError(
            f"pip could not fetch {' and '.join(PACKAGES)} for {architecture} and Python {python}: {reason} (without "
            "a network, give --code_only and put them into a layer)."
        )


def _newer(architecture: str) -> str:
    """Return the newer platform tag of NumPy 2.3; Lambda's Amazon Linux 2023 (Python 3.12 on) has glibc 2.34."""
    return _PLATFORMS[architecture].replace("manylinux2014", "manylinux_2_28")


def write_package(output: Path, packages: Path) -> int:
    """Write the zip file and return its unzipped size. Reproducible: the same files give the same bytes."""
    unzipped = 0
    with atomic_write(output) as temporary, zipfile.ZipFile(
        temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as out:
        for name, path in [*((name, _ROOT / name) for name in CODE), *_package_files(packages)]:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            content = path.read_bytes()
            unzipped += len(content)
            out.writestr(entry, content)
    return unzipped


def _package_files(packages: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(packages.rglob("*")):
        name = path.relative_to(packages)
        if path.is_file() and not any(part in _LEFT_OUT for part in name.parts) and path.suffix != ".pyi":
            yield name.as_posix(), path
