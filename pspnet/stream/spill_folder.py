"""Persistent queue of items that a sink did not accept, one PNG file per item.

Files are written atomically, so spilled items survive the process, even if it is killed. They are not synced to disk,
so a power failure may lose the last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from pspnet.errors import ConfigError
from pspnet.masks.codec import MaskFileError
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.masks.reader import read_png
from pspnet.masks.storage import BytesInMemory
from pspnet.masks.writer import png_file
from pspnet.system.atomic_files import atomic_write

# Far from 0, so that older items that are still in memory can be inserted before the first one.
_FIRST_NUMBER = 10**9
_NAME = re.compile(r"item-(\d{12})\.png")


class DamagedItem(Exception):
    """Unreadable file of a spill folder; it was renamed to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path))


class FolderInUse(ConfigError):
    """Spill folder locked by another stream."""


class SpillFolder:
    """Queue of items in a folder, locked by one process at a time. Not thread-safe.

    limit: maximum total bytes of the files.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Find the items of an earlier run. Raises FolderInUse if another process holds the lock, and OSError."""
        self.folder, self.limit = folder, limit
        self._lock: IO[str] | None = None
        self._head, self._tail = _FIRST_NUMBER, _FIRST_NUMBER  # numbers of the first item and after the last
        self._count = 0
        self.size = 0
        if folder.is_dir():
            self.claim()

    def __len__(self) -> int:
        return self._count

    def claim(self) -> int:
        """Create and lock the folder; return the number of items of other runs, 0 if it was locked already.

        Raises FolderInUse if another process holds the lock, and OSError.
        """
        if self._lock is not None:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = open(self.folder / "lock", "a")  # noqa: SIM115 - held as long as the folder is used
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise FolderInUse(f"--spill: {self.folder} is in use by another stream; pass another folder.") from error
        try:
            self._read_folder()
        except OSError:
            handle.close()
            raise
        self._lock = handle
        return self._count

    def _read_folder(self) -> None:
        numbers, size = [], 0
        for entry in os.scandir(self.folder):
            found = _NAME.fullmatch(entry.name)
            if found:
                numbers.append(int(found[1]))
                size += entry.stat().st_size
        self.size = size
        if numbers:
            self._head, self._tail, self._count = min(numbers), max(numbers) + 1, len(numbers)

    def append(self, item: MaskedFrame) -> bool:
        """Append an item. Return False if the limit is reached. Raises OSError, and FolderInUse as claim()."""
        self.claim()
        if self.size >= self.limit:
            return False
        self._write(self._tail, item)
        self._tail += 1
        return True

    def prepend(self, items: list[MaskedFrame]) -> None:
        """Insert items before all others, ignoring the limit. Raises as append()."""
        self.claim()
        for item in reversed(items):
            self._write(self._head - 1, item)
            self._head -= 1

    def _write(self, number: int, item: MaskedFrame) -> None:
        content = png_file(item, None, zlib.Z_RLE)
        with atomic_write(self._path(number)) as temporary:
            temporary.write_bytes(content)
        self._count += 1
        self.size += len(content)

    def first(self) -> MaskedFrame | None:
        """Return the oldest item without removing it. Raises DamagedItem if its file cannot be read, and OSError."""
        while self._count and self._head < self._tail:
            path = self._path(self._head)
            try:
                return _unpack(path.read_bytes(), path.name)
            except FileNotFoundError:
                self._head += 1  # the item was damaged or removed by hand
            except MaskFileError as error:
                damaged = path.with_suffix(".damaged")
                size = path.stat().st_size
                path.rename(damaged)
                self._drop_first(size)
                raise DamagedItem(damaged) from error
        self._count, self.size, self._head = 0, 0, self._tail
        return None

    def remove_first(self) -> None:
        """Remove the oldest item."""
        path = self._path(self._head)
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._drop_first(size)

    def _drop_first(self, size: int) -> None:
        self._head += 1
        self._count -= 1
        self.size -= size

    def _path(self, number: int) -> Path:
        return self.folder / f"item-{number:012d}.png"

    def close(self) -> None:
        """Unlock the folder, and remove it if it is empty."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if not self._count:
                with contextlib.suppress(OSError):
                    (self.folder / "lock").unlink()
                    self.folder.rmdir()


def folder_name(sink: str) -> str:
    """Return a readable and unique folder name for a sink's name."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", sink).strip("-")[:60] or "sink"
    return f"{readable}-{hashlib.sha256(sink.encode()).hexdigest()[:8]}"


def _unpack(content: bytes, name: str) -> MaskedFrame:
    record = read_png(BytesInMemory(content, name))
    image = np.broadcast_to(np.uint8(0), (*record.mask.shape, 3))
    # Monotonic times are invalid in another process, so `arrived` and `inferred` are not stored.
    frame = Frame(record.frame, image, record.captured, 0.0, record.timestamp, record.labels)
    return MaskedFrame(frame, record.mask, 0.0)
