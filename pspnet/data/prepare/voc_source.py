"""Sources of PASCAL VOC: an unpacked VOCdevkit folder, or the official tar read in place."""

from __future__ import annotations

import abc
import gzip
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pspnet.errors import DataError

_DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
_LISTS = "ImageSets/Segmentation"
# A stem becomes part of a file name, so path separators are rejected.
_STEM = re.compile(r"\A(?!\.)[A-Za-z0-9._-]+\Z")


def image_name(stem: str) -> str:
    """The photograph's name inside VOC2012/."""
    return f"JPEGImages/{stem}.jpg"


def annotation_name(stem: str) -> str:
    """The mask's name inside VOC2012/."""
    return f"SegmentationClass/{stem}.png"


class VocSource(abc.ABC):
    """The files below one VOC2012 folder, by their names inside it ("JPEGImages/2007_000032.jpg").

    `title` is the path for messages, `fix` the advice for missing files.
    """

    title: str
    fix: str

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """True if the file exists."""

    @abc.abstractmethod
    def read_text(self, name: str) -> str:
        """The content of a text file."""

    @abc.abstractmethod
    def copy_to(self, name: str, destination: Path) -> None:
        """Copy or link the file to `destination`."""

    def in_stored_order(self, names: Iterable[str]) -> list[str]:
        """The names in the fastest reading order."""
        return sorted(names)

    def stems(self, split: str) -> list[str]:
        """The stems of ImageSets/Segmentation/<split>.txt, in its order; DataError if it has none."""
        name = f"{_LISTS}/{split}.txt"
        if not self.has(name):
            raise DataError(f"{self.title}: {name} is missing. {self.fix}")
        stems = self.read_text(name).split()
        for stem in stems:
            if not _STEM.match(stem):
                raise DataError(f"{self.title}: {name} contains {stem!r}; expected one file stem per line.")
        if not stems:
            raise DataError(f"{self.title}: {name} is empty; expected one file stem per line.")
        return list(dict.fromkeys(stems))


class VocFolder(VocSource):
    """An unpacked VOC2012 folder; writes hard links if `link` is set and the file system supports them."""

    def __init__(self, folder: Path, link: bool = True) -> None:
        self.folder, self.link, self.title = folder, link, str(folder)
        self.fix = "Unpack all of VOCtrainval_11-May-2012.tar."

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def read_text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def copy_to(self, name: str, destination: Path) -> None:
        link_or_copy(self.folder / name, destination, self.link)


class VocTar(VocSource):
    """The tar file; only requested members are read, and they are never extracted under their stored names."""

    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self.archive, self.title = archive, str(path)
        self.fix = "The archive may be truncated: compare its MD5, or download it again."
        members = {str(PurePosixPath(member.name)): member for member in archive.getmembers() if member.isreg()}
        tops = {name[: -len(f"{_LISTS}/train.txt")] for name in members if name.endswith(f"{_LISTS}/train.txt")}
        if not tops:
            raise DataError(
                f"{path}: has no VOC2012/{_LISTS}/train.txt; expected the complete VOCtrainval_11-May-2012.tar."
            )
        top = min(tops, key=lambda name: ("VOC2012" not in name, name))
        self.members = {name[len(top) :]: member for name, member in members.items() if name.startswith(top)}

    def has(self, name: str) -> bool:
        return name in self.members

    def read_text(self, name: str) -> str:
        return self._read(name).decode("utf-8", errors="replace")

    def copy_to(self, name: str, destination: Path) -> None:
        destination.write_bytes(self._read(name))

    def in_stored_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: self.members[name].offset)

    def _read(self, name: str) -> bytes:
        stream = self.archive.extractfile(self.members[name])
        assert stream is not None  # only regular files are members
        with stream:
            return stream.read()


def link_or_copy(source: Path, destination: Path, link: bool = True) -> None:
    """Hard-link `source`, or copy it if `link` is False or links are not possible (another disk)."""
    # A link to a symbolic link would break when that moves.
    real = os.path.realpath(source)
    if link:
        try:
            os.link(real, destination)
            return
        except OSError:
            pass  # the copy below reports real errors, such as a full disk
    shutil.copyfile(real, destination)


@contextmanager
def open_voc(source: Path, link: bool = True) -> Iterator[VocSource]:
    """Open VOC2012 in a folder (VOCdevkit, its parent, or VOC2012 itself) or in the official tar.

    Raises DataError for other sources and for archives that are damaged, also while they are read.
    """
    if source.is_dir():
        yield VocFolder(_find_voc2012(source), link)
        return
    if not source.is_file():
        raise DataError(f"{source}: does not exist; expected a VOCdevkit folder or VOCtrainval_11-May-2012.tar.")
    with open_tar(source) as archive:
        yield VocTar(source, archive)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file, compressed or not; damage becomes a DataError, also while it is read."""
    try:
        with tarfile.open(path) as archive:
            yield archive
    except _DAMAGE as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise DataError(f"{path}: not a readable tar file, or truncated ({reason}). Download it again.") from error


def _find_voc2012(source: Path) -> Path:
    candidates = [source / inner for inner in ("", "VOC2012", "VOCdevkit/VOC2012", "TrainVal/VOCdevkit/VOC2012")]
    for folder in candidates:
        if (folder / _LISTS).is_dir():
            return folder
    raise DataError(
        f"{source}: has no VOC2012 with {_LISTS}, JPEGImages and SegmentationClass; expected a VOCdevkit folder, "
        "its parent, or VOC2012 itself."
    )
