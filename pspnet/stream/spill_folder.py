"""Persistent queue of items that a sink did not accept, one file per item.

Files are written atomically, so spilled items survive the process, even if it is killed. They are not synced to disk,
so a power failure may lose the last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from pspnet.errors import ConfigError
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.masks.png import encode_mask
from pspnet.system.atomic_files import atomic_write

# Far from 0, so that older items that are still in memory can be inserted before the first one.
_FIRST_NUMBER = 10**9
_NAME = re.compile(r"item-(\d{12})\.zip")


class DamagedItem(Exception):
    """Unreadable file of a spill folder; it was renamed to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path))


class FolderInUse(ConfigError):
    """Spill folder locked by another stream."""


class SpillFolder:
    """Queue of items in a folder, locked by one process at a time. Not thread-safe.

    limit: maximum total bytes of the files. images: whether frames are stored together with the masks.
    """

    def __init__(self, folder: Path, limit: int, images: bool) -> None:
        """Find the items of an earlier run. Raises FolderInUse if another process holds the lock, and OSError."""
        self.folder, self.limit, self._images = folder, limit, images
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
        content = _pack(item, self._images)
        with atomic_write(self._path(number)) as temporary:
            temporary.write_bytes(content)
        self._count += 1
        self.size += len(content)

    def first(self) -> MaskedFrame | None:
        """Return the oldest item without removing it. Raises DamagedItem if its file cannot be read, and OSError."""
        while self._count and self._head < self._tail:
            path = self._path(self._head)
            try:
                return _unpack(path.read_bytes())
            except FileNotFoundError:
                self._head += 1  # the item was damaged or removed by hand
            except (ValueError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
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
        return self.folder / f"item-{number:012d}.zip"

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


def _pack(item: MaskedFrame, images: bool) -> bytes:
    frame = item.frame
    about = {
        "index": frame.index,
        "captured": frame.captured,
        "timestamp": frame.timestamp,
        "labels": dict(frame.labels),
        "size": list(frame.image.shape[:2]),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("frame.json", json.dumps(about))
        archive.writestr("mask.png", encode_mask(item.mask))
        if images:
            picture = io.BytesIO()
            Image.fromarray(frame.image).save(picture, format="PNG", compress_level=1)
            archive.writestr("frame.png", picture.getvalue())
    return buffer.getvalue()


def _unpack(content: bytes) -> MaskedFrame:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        about = json.loads(archive.read("frame.json"))
        mask = _picture(archive.read("mask.png"))
        if "frame.png" in archive.namelist():
            image = _picture(archive.read("frame.png"))
        else:
            image = np.broadcast_to(np.uint8(0), (*about["size"], 3))
    # Monotonic times are invalid in another process, so `arrived` and `inferred` are not stored.
    frame = Frame(int(about["index"]), image, float(about["captured"]), 0.0, float(about["timestamp"]), about["labels"])
    return MaskedFrame(frame, mask, 0.0)


def _picture(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.array(picture)
