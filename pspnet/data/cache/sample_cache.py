"""Decoded images and masks kept in files, so that later epochs need no decoder. The samples are the same, bit by bit.

One file a pair, in a folder that all loader workers, all processes of a run and all runs of a user may share: on a
disk, or in memory where the folder is one of a tmpfs (cache_folder.py). Files appear whole or not at all, under a name
made from the pair's paths; the sizes and times of the two source files stand in them, so a changed source is decoded
again and replaces its file. What has been kept stays: every pair is wanted once an epoch, so dropping one to keep
another wins nothing. When the limit is reached the rest is decoded as without a cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import struct
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Tuple

import numpy as np
import torch

from pspnet.data.channels import Pair

try:
    import fcntl
except ImportError:  # Windows: the count of bytes is not guarded there
    fcntl = None  # type: ignore[assignment]

# A file: this header (height, width; size and time of image and annotation), the image, the mask, and the mark again.
_HEADER = struct.Struct("<8sIIqqqq")
_MARK = b"pspnet\x01\n"
_SUFFIX = ".pair"
_TEMPORARY = ".tmp"
_COUNT_NAME = "bytes"
# Without a full disk or a dead process no temporary file lives this long, in seconds.
_ABANDONED_AFTER = 3600

# Size and time (ns) of the image's and of the annotation's file.
_Signature = Tuple[int, int, int, int]


class ImageCache:
    """Decoded pairs in the files of `folder`, which must exist, up to `limit_bytes` for all who use the folder.

    `announce` says whether this process tells, on standard error and once for all its loader workers, that the disk is
    full. Then nothing more is kept, what is kept stays in use, and the run goes on.
    """

    def __init__(self, folder: Path, limit_bytes: int, announce: bool = True) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.announce = announce
        # Shared with the workers, however they are started.
        self._closed = torch.zeros(1, dtype=torch.uint8).share_memory_()
        self._signatures: dict[Pair, _Signature] = {}
        self._count_again()

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
        """(H, W, 3) uint8 RGB and (H, W) uint8 pixel values, not to be written to; None where they are not kept."""
        try:
            # Asked for before the sources are read, so that a source that changes meanwhile is decoded again.
            signature = self._signature(pair)
            with open(self._path(pair), "rb") as file:
                # Mapped, not read: of a large image only the pages of the crop's window are touched.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        if len(content) < _HEADER.size + len(_MARK):
            return None
        mark, height, width, *found = _HEADER.unpack_from(content)
        pixels = height * width
        whole = len(content) == _file_size(pixels) and mark == content[-len(_MARK) :] == _MARK
        if not whole or tuple(found) != signature:
            return None
        image = np.frombuffer(content, np.uint8, 3 * pixels, _HEADER.size).reshape(height, width, 3)
        mask = np.frombuffer(content, np.uint8, pixels, _HEADER.size + 3 * pixels).reshape(height, width)
        return image, mask

    def write(self, pair: Pair, image: np.ndarray, mask: np.ndarray) -> None:
        """Keep an (H, W, 3) uint8 image and its (H, W) uint8 mask, if there is room."""
        if self._closed[0]:
            return
        path = self._path(pair)
        # Not by process id: containers that share the folder have the same ones.
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{_TEMPORARY}")
        height, width = mask.shape
        try:
            if not self._reserve(_file_size(height * width), path):
                self._say_full()
                return
            with open(temporary, "wb") as file:
                file.write(_HEADER.pack(_MARK, height, width, *self._signature(pair)))
                file.write(np.ascontiguousarray(image).data)
                file.write(np.ascontiguousarray(mask).data)
                file.write(_MARK)
            self._put(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            self._give_up(error)

    def used_bytes(self) -> int:
        """What all files of the folder take."""
        with contextlib.suppress(OSError), open(self.folder / _COUNT_NAME, "rb") as file:
            return int.from_bytes(file.read(8), "little")
        return 0

    def _path(self, pair: Pair) -> Path:
        names = f"{os.path.abspath(pair.image)}\0{os.path.abspath(pair.annotation)}"
        return self.folder / (hashlib.sha256(os.fsencode(names)).hexdigest()[:40] + _SUFFIX)

    def _signature(self, pair: Pair) -> _Signature:
        """Asked of the file system once in each process: SageMaker's FastFile mode answers from far away."""
        found = self._signatures.get(pair)
        if found is None:
            image, annotation = os.stat(pair.image), os.stat(pair.annotation)
            found = (image.st_size, image.st_mtime_ns, annotation.st_size, annotation.st_mtime_ns)
            self._signatures[pair] = found
        return found

    def _reserve(self, size: int, path: Path) -> bool:
        """Count a file in before it is written; False if it would exceed the limit. `_put` counts out what goes."""
        with self._counted() as file:
            used = int.from_bytes(file.read(8), "little") + size
            if used - _size_of(path) > self.limit_bytes:
                return False
            file.seek(0)
            file.write(used.to_bytes(8, "little"))
        return True

    def _put(self, temporary: Path, path: Path) -> None:
        """Give a whole file its name. What had it goes: another run's of the same pair, or a changed pair's."""
        with self._counted() as file:
            replaced = _size_of(path)
            os.replace(temporary, path)
            used = int.from_bytes(file.read(8), "little") - replaced
            file.seek(0)
            file.write(max(0, used).to_bytes(8, "little"))

    def _count_again(self) -> None:
        """What stopped or failing processes counted and never wrote, or wrote and left, is put right."""
        now, used = time.time(), 0
        (self.folder / _COUNT_NAME).touch()
        with self._counted() as file:
            for entry in _entries(self.folder):
                with contextlib.suppress(OSError):  # another process may remove it now
                    found = entry.stat()
                    if entry.name.endswith(_TEMPORARY) and now - found.st_mtime > _ABANDONED_AFTER:
                        os.unlink(entry.path)
                    else:
                        used += found.st_size
            file.write(used.to_bytes(8, "little"))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[IO[bytes]]:
        """The file that holds the count of bytes, for one process at a time."""
        with open(self.folder / _COUNT_NAME, "r+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
            yield file

    def _give_up(self, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        self._close(
            f"warning: {self.folder}: no more decoded images are kept ({reason}); the rest is decoded as before. "
            "Free some space, or give a lower cache_limit_gb or another cache_dir."
        )

    def _say_full(self) -> None:
        self._close(
            f"note: {self.folder} holds {self.used_bytes() / 1e9:.2f} GB of decoded images, of this and of earlier "
            f"runs, and may hold {self.limit_bytes / 1e9:.2f}; the rest is decoded each time. A higher cache_limit_gb, "
            "another cache_dir, or removing the folder makes room."
        )

    def _close(self, sentence: str) -> None:
        already, self._closed[0] = bool(self._closed[0]), 1
        if self.announce and not already:
            print(sentence, file=sys.stderr, flush=True)


def remove_kept(folder: Path) -> None:
    """Remove all that caches keep in `folder`, which nobody uses now."""
    for entry in _entries(folder):
        with contextlib.suppress(OSError):
            os.unlink(entry.path)


def _size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _file_size(pixels: int) -> int:
    return _HEADER.size + 4 * pixels + len(_MARK)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        yield from (entry for entry in found if entry.name.endswith((_SUFFIX, _TEMPORARY)))
