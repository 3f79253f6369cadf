"""`lambda_package`: pack the mask summary function as a zip file, and write its CloudFormation template."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pspnet.errors import PspnetError
from pspnet.system.atomic_files import atomic_write
from sagemaker_entry.aws.account_settings import add_flag

CODE = (
    "pspnet/__init__.py",
    "pspnet/classes.py",
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


def register(subparsers: Any) -> None:
    """Add the command to the parser of `python -m sagemaker_entry`."""
    parser = subparsers.add_parser(
        "lambda_package", help="pack the function that summarises masks on S3", allow_abbrev=False
    )
    add_flag(parser, "output", type=Path, required=True, metavar="ZIP", help="the package to write")
    add_flag(parser, "template", type=Path, metavar="YAML", help="also write the pipeline's CloudFormation template")
    add_flag(parser, "architecture", choices=sorted(_PLATFORMS), default="x86_64", help="CPU type (%(default)s)")
    add_flag(parser, "python", choices=("3.12", "3.13"), default="3.12", help="the function's Python (%(default)s)")
    add_flag(parser, "code_only", action="store_true", help="omit NumPy and Pillow, for a layer with them")
    parser.set_defaults(run=lambda_package_command)


def lambda_package_command(arguments: argparse.Namespace) -> int:
    """Write the package, print its size and the next command."""
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder) / "packages"
        packages.mkdir()
        if not arguments.code_only:
            install_packages(packages, arguments.architecture, arguments.python)
        unzipped = write_package(arguments.output, packages)
    if unzipped > LARGEST_UNZIPPED:
        raise PspnetError(
            f"{arguments.output}: {unzipped} bytes unzipped, above Lambda's limit of {LARGEST_UNZIPPED}; give "
            "--code_only and put NumPy and Pillow into a layer."
        )
    digest = hashlib.sha256(arguments.output.read_bytes()).hexdigest()[:12]
    print(f"Wrote {arguments.output}: {arguments.output.stat().st_size:,} bytes, {unzipped:,} unzipped.")
    if arguments.template is not None:
        with atomic_write(arguments.template) as temporary:
            temporary.write_bytes((Path(__file__).parent / TEMPLATE).read_bytes())
        print(f"Wrote {arguments.template}.")
    print(f"Next: aws s3 cp {arguments.output} s3://CODE_BUCKET/pspnet-summaries-{digest}.zip")
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
