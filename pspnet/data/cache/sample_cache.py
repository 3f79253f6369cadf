"""Cache files of decoded images and masks. Cached samples equal decoded ones bit for bit.

One file per pair, in a folder that all loader workers, processes and runs of a user may share: on disk, or in memory if
the folder is on a tmpfs (cache_folder.py). Files are written atomically, named by the pair's paths, and store the sizes
and modification times of both sources, so a changed source is decoded again and replaces its file. There is no
eviction: every pair is read once per epoch, so evicting one for another gains nothing. At the limit, the remaining
pairs are decoded each time.
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
except ImportError:  # Windows: the byte count is not locked
    fcntl = None  # type: ignore[assignment]

# File format: header (mark, height, width, size and time of image and annotation), image, mask, and the mark again.
_HEADER = struct.Struct("<8sIIqqqq")
_MARK = b"pspnet\x01\n"
_SUFFIX = ".pair"
_TEMPORARY = ".tmp"
_COUNT_NAME = "bytes"
# Temporary files older than this, in seconds, were left by a dead process or a full disk.
_ABANDONED_AFTER = 3600

# Size and modification time (ns) of the image file and of the annotation file.
_Signature = Tuple[int, int, int, int]


class ImageCache:
    """Decoded pairs in files of `folder`, which must exist, up to `limit_bytes` over all users of the folder.

    If the disk or the limit is full, nothing more is cached, cached pairs stay in use and the run continues; `announce`
    prints this to standard error, once for this process and its loader workers.
    """

    def __init__(self, folder: Path, limit_bytes: int, announce: bool = True) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.announce = announce
        # Shared with the workers, for every start method.
        self._closed = torch.zeros(1, dtype=torch.uint8).share_memory_()
        self._signatures: dict[Pair, _Signature] = {}
        self._recount()

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
        """(H, W, 3) uint8 RGB and (H, W) uint8 pixel values, read-only; None if not cached."""
        try:
            # Determined before the sources are read, so that a source that changes meanwhile is decoded again.
            signature = self._signature(pair)
            with open(self._path(pair), "rb") as file:
                # Memory-mapped: of a large image, only the pages of the crop are read.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        if len(content) < _HEADER.size + len(_MARK):
            return None
        mark, height, width, *found = _HEADER.unpack_from(content)
        pixels = height * width
        complete = len(content) == _file_size(pixels) and mark == content[-len(_MARK) :] == _MARK
        if not complete or tuple(found) != signature:
            return None
        image = np.frombuffer(content, np.uint8, 3 * pixels, _HEADER.size).reshape(height, width, 3)
        mask = np.frombuffer(content, np.uint8, pixels, _HEADER.size + 3 * pixels).reshape(height, width)
        return image, mask

    def write(self, pair: Pair, image: np.ndarray, mask: np.ndarray) -> None:
        """Cache an (H, W, 3) uint8 image and its (H, W) uint8 mask, if they fit the limit."""
        if self._closed[0]:
            return
        path = self._path(pair)
        # Not by process id: containers that share the folder may have equal ones.
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{_TEMPORARY}")
        height, width = mask.shape
        try:
            if not self._reserve(_file_size(height * width), path):
                self._report_limit()
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
            self._report_error(error)

    def used_bytes(self) -> int:
        """Total size of the cache files in the folder."""
        with contextlib.suppress(OSError), open(self.folder / _COUNT_NAME, "rb") as file:
            return int.from_bytes(file.read(8), "little")
        return 0

    def _path(self, pair: Pair) -> Path:
        names = f"{os.path.abspath(pair.image)}\0{os.path.abspath(pair.annotation)}"
        return self.folder / (hashlib.sha256(os.fsencode(names)).hexdigest()[:40] + _SUFFIX)

    def _signature(self, pair: Pair) -> _Signature:
        """The sources' signature, read once per process: stat is slow in SageMaker's FastFile mode."""
        found = self._signatures.get(pair)
        if found is None:
            image, annotation = os.stat(pair.image), os.stat(pair.annotation)
            found = (image.st_size, image.st_mtime_ns, annotation.st_size, annotation.st_mtime_ns)
            self._signatures[pair] = found
        return found

    def _reserve(self, size: int, path: Path) -> bool:
        """Add a file to the count before it is written; False above the limit. `_put` subtracts the replaced file."""
        with self._locked_count() as file:
            used = int.from_bytes(file.read(8), "little") + size
            if used - _size_of(path) > self.limit_bytes:
                return False
            file.seek(0)
            file.write(used.to_bytes(8, "little"))
        return True

    def _put(self, temporary: Path, path: Path) -> None:
        """Rename a complete file. It replaces another run's file of the same pair, or that of a changed pair."""
        with self._locked_count() as file:
            replaced = _size_of(path)
            os.replace(temporary, path)
            used = int.from_bytes(file.read(8), "little") - replaced
            file.seek(0)
            file.write(max(0, used).to_bytes(8, "little"))

    def _recount(self) -> None:
        """Correct the count, and remove abandoned files, after processes that were killed or failed."""
        now, used = time.time(), 0
        (self.folder / _COUNT_NAME).touch()
        with self._locked_count() as file:
            for entry in _entries(self.folder):
                with contextlib.suppress(OSError):  # another process may remove it meanwhile
                    found = entry.stat()
                    if entry.name.endswith(_TEMPORARY) and now - found.st_mtime > _ABANDONED_AFTER:
                        os.unlink(entry.path)
                    else:
                        used += found.st_size
            file.write(used.to_bytes(8, "little"))

    @contextlib.contextmanager
    def _locked_count(self) -> Iterator[IO[bytes]]:
        """The file of the byte count, opened by one process at a time."""
        with open(self.folder / _COUNT_NAME, "r+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
            yield file

    def _report_error(self, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        self._close(
            f"warning: {self.folder}: no more decoded images are cached ({reason}); the rest is decoded each time. "
            "Free some space, or give a lower cache_limit_gb or another cache_dir."
        )

    def _report_limit(self) -> None:
        self._close(
            f"note: {self.folder} has {self.used_bytes() / 1e9:.2f} GB of decoded images, of this and earlier runs; "
            f"the limit is {self.limit_bytes / 1e9:.2f} GB. The rest is decoded each time. Increase cache_limit_gb, "
            "give another cache_dir, or remove the folder."
        )

    def _close(self, message: str) -> None:
        already, self._closed[0] = bool(self._closed[0]), 1
        if self.announce and not already:
            print(message, file=sys.stderr, flush=True)


def remove_cached(folder: Path) -> None:
    """Remove all cache files in `folder`, which must be unused."""
    for entry in _entries(folder):
        with contextlib.suppress(OSError):
            os.unlink(entry.path)


def _size_of(path: Path) -> int:
    """Size of a file in bytes, 0 if missing."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _file_size(pixels: int) -> int:
    return _HEADER.size + 4 * pixels + len(_MARK)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        yield from (entry for entry in found if entry.name.endswith((_SUFFIX, _TEMPORARY)))
