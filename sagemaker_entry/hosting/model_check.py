"""Check of a model directory or archive before anything is created in AWS: its files, format and code."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pspnet.artifact.file_names import CODE_NAME, CONFIG_NAME, MODEL_FORMAT, WEIGHTS_NAME
from pspnet.errors import WeightsError
from pspnet.system.locations import find_project_file

HANDLERS = f"{CODE_NAME}/inference.py"
PACKAGE_FILE = f"{CODE_NAME}/pspnet/__init__.py"

_LARGEST_TEXT = 16 * 1024 * 1024
_UNREADABLE = (tarfile.TarError, EOFError, OSError)


@dataclass
class Findings:
    """Relevant contents of a model archive or directory."""

    names: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)
    handlers: bytes = b""

    @property
    def has_code(self) -> bool:
        """True if it includes the handlers and the package."""
        return {HANDLERS, PACKAGE_FILE} <= self.names

    @property
    def is_complete(self) -> bool:
        """True if every required file was found, so that the rest of an archive need not be read."""
        return self.has_code and {WEIGHTS_NAME, CONFIG_NAME} <= self.names


def check_findings(found: Findings, where: str) -> None:
    """Raise WeightsError if this is not a model directory of this project."""
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if name not in found.names]
    if missing:
        others = ", ".join(sorted(name for name in found.names if "/" not in name)[:5])
        foreign = ""
        if "model_algo-1" in found.names:
            foreign = " It is the built-in algorithm's artifact: `pspnet import --from gluoncv` converts it."
        raise WeightsError(
            f"{where}: {' and '.join(missing)} missing{f' (found {others})' if others else ''}; not a model of this "
            f"project.{foreign} Give a model directory or model.tar.gz that training wrote."
        )
    form = found.config.get("format")
    if form != MODEL_FORMAT:
        raise WeightsError(
            f"{where}: its {CONFIG_NAME} has {f'the format {form!r}' if form else 'no format'}; expected "
            f"{MODEL_FORMAT!r}. Give a model directory or model.tar.gz that training wrote."
        )


def has_other_code(found: Findings) -> bool:
    """Return True if the model's handlers differ from those of this installation."""
    own = find_project_file("inference.py")
    return found.has_code and own is not None and own.read_bytes() != found.handlers


def inspect_directory(folder: Path) -> Findings:
    """Return the contents of a model directory. Raises WeightsError for an invalid config."""
    known = (WEIGHTS_NAME, CONFIG_NAME, HANDLERS, PACKAGE_FILE)
    names = {name for name in known if (folder / name).is_file()} | {path.name for path in folder.iterdir()}
    found = Findings(names)
    if CONFIG_NAME in names:
        found.config = _parse_config((folder / CONFIG_NAME).read_bytes(), str(folder))
    if HANDLERS in names:
        found.handlers = (folder / HANDLERS).read_bytes()
    return found


def inspect_archive(stream: IO[bytes], where: str) -> Findings:
    """Return the contents of a model.tar.gz, read as a stream and only as far as needed. Writes nothing.

    Raises WeightsError for a damaged archive, or for paths outside the model directory.
    """
    found = Findings()
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as tar:
            for member in tar:
                name = member_name(member, where)
                if member.isfile():
                    found.names.add(name)
                if name in (CONFIG_NAME, HANDLERS) and member.isfile():
                    if member.size > _LARGEST_TEXT:
                        raise WeightsError(f"{where}: its {name} has {member.size:,} bytes; the archive is damaged.")
                    content = tar.extractfile(member)
                    assert content is not None, "a regular member has content"
                    if name == CONFIG_NAME:
                        found.config = _parse_config(content.read(), where)
                    else:
                        found.handlers = content.read()
                if found.is_complete:
                    break
    except _UNREADABLE as error:
        raise WeightsError(f"{where}: not a readable model archive ({error}). Copy it again.") from error
    return found


def member_name(member: tarfile.TarInfo, where: str) -> str:
    """Return a member's path relative to the model directory. Raises WeightsError if it is outside."""
    name = member.name[2:] if member.name.startswith("./") else member.name
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise WeightsError(f"{where}: the path {member.name!r} is outside the model directory.")
    return name


def _parse_config(content: bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise WeightsError(f"{where}: its {CONFIG_NAME} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{where}: its {CONFIG_NAME} is not a JSON object.")
    return config


def pack_model(folder: Path, archive: Path) -> None:
    """Write a model.tar.gz of weights, config and code/; the weights come last, so that checking it is fast."""
    with tarfile.open(archive, "w:gz", compresslevel=1, dereference=True) as tar:
        for name in (CODE_NAME, CONFIG_NAME, WEIGHTS_NAME):
            tar.add(folder / name, arcname=name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Drop user and group from a member; exclude caches and special files."""
    if "__pycache__" in member.name or not (member.isfile() or member.isdir()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member
