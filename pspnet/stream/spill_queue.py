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
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from pspnet.errors import ConfigError
from pspnet.masks.codec import MaskFileError
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.masks.reader import read_png
from pspnet.masks.storage import BytesInMemory
from pspnet.masks.writer import png_file
from pspnet.stream.statistics import SinkStatistics
from pspnet.system.atomic_files import atomic_write

# Far from 0, so that older items that are still in memory can be inserted before the first one.
_FIRST_NUMBER = 10**9
_NAME = re.compile(r"item-(\d{12})\.png")


class FolderInUse(ConfigError):
    """Spill folder locked by another stream."""


class SpillQueue:
    """Queue of items in a folder, which is created on demand and locked by one process at a time. Not thread-safe."""

    def __init__(
        self, folder: Path, limit: int, statistics: SinkStatistics, report: Callable[[str], None] = lambda _: None
    ) -> None:
        """limit: maximum total bytes. Reports the items of an earlier run.

        Raises FolderInUse if another process holds the lock, and OSError.
        """
        self.folder, self.limit, self.size = folder, limit, 0
        self._statistics, self._report = statistics, report
        self._lock: IO[str] | None = None
        self._sizes: dict[int, int] = {}  # bytes of the files by their numbers, in order
        self._recovered = 0  # items of other runs, which come first
        self._failure_reported = False
        if folder.is_dir():
            self._claim()

    def __len__(self) -> int:
        return len(self._sizes)

    def _claim(self) -> None:
        """Create and lock the folder; items that another run left there are delivered first."""
        if self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            lock = opened.enter_context(open(self.folder / "lock", "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderInUse(
                    f"--spill: {self.folder} is in use by another stream; pass another folder."
                ) from error
            found = [
                (int(name[1]), entry) for entry in os.scandir(self.folder) if (name := _NAME.fullmatch(entry.name))
            ]
            self._sizes = {number: entry.stat().st_size for number, entry in sorted(found, key=lambda pair: pair[0])}
            opened.pop_all()  # locked until close()
        self._lock, self._recovered, self.size = lock, len(found), sum(self._sizes.values())
        if found:
            self._statistics.on_disk = len(found)
            self._report(
                f"{self._statistics.name}: delivering {len(found)} items of an earlier run from {self.folder} first."
            )

    def append(self, item: MaskedFrame) -> bool:
        """Append an item; return whether it was stored. The first of consecutive failures is reported."""
        try:
            self._claim()
            stored, reason = self.size < self.limit, f"its limit of {self.limit:,} bytes (--spill_bytes) is reached"
            if stored:
                self._write(next(reversed(self._sizes), _FIRST_NUMBER - 1) + 1, item)
        except (OSError, FolderInUse) as error:
            stored, reason = False, _reason(error)
        if not (stored or self._failure_reported):
            self._report(f"{self._statistics.name}: cannot spill to {self.folder}: {reason}.")
        self._failure_reported = not stored
        return stored

    def prepend(self, items: list[MaskedFrame]) -> None:
        """Insert items before all others, ignoring the limit; those that cannot be stored are reported as lost."""
        left = list(items)
        try:
            self._claim()
            while left:
                number = next(iter(self._sizes), _FIRST_NUMBER) - 1
                self._write(number, left[-1])
                self._sizes = {number: self._sizes.pop(number), **self._sizes}
                left.pop()
        except (OSError, FolderInUse) as error:
            self._statistics.count("lost", len(left))
            self._report(f"{self.folder}: cannot be written ({_reason(error)}); {len(left)} items are lost.")

    def _write(self, number: int, item: MaskedFrame) -> None:
        content = png_file(item, None, zlib.Z_RLE)
        with atomic_write(self._path(number)) as temporary:
            temporary.write_bytes(content)
        self._sizes[number] = len(content)
        self.size += len(content)
        self._statistics.count("spilled")
        self._statistics.on_disk = len(self)

    def first(self) -> MaskedFrame | None:
        """Return the oldest item without removing it. Damaged items are reported, counted as lost and skipped."""
        while self._sizes:
            path = self._path(next(iter(self._sizes)))
            try:
                return _unpack(path.read_bytes(), path.name)
            except FileNotFoundError:
                self._drop_first()  # removed by hand
            except MaskFileError:
                damaged = path.rename(path.with_suffix(".damaged"))
                self._drop_first()
                self._report(f"{self._statistics.name}: skipped a damaged item, kept as {damaged}.")
                self._statistics.count("lost")
        return None

    def remove_first(self) -> bool:
        """Remove the oldest item after its delivery; return whether another run spilled it."""
        self._path(next(iter(self._sizes))).unlink(missing_ok=True)
        return self._drop_first()

    def _drop_first(self) -> bool:
        self.size -= self._sizes.pop(next(iter(self._sizes)))
        recovered = self._recovered > 0
        self._recovered -= recovered
        self._statistics.on_disk = len(self)
        return recovered

    def _path(self, number: int) -> Path:
        return self.folder / f"item-{number:012d}.png"

    def close(self) -> None:
        """Unlock the folder, and remove it if it is empty; report the items left in it."""
        if len(self):
            self._report(
                f"{self._statistics.name}: {len(self)} items were not delivered; they are in {self.folder}, and the "
                "next run with the same --spill delivers them first."
            )
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if not len(self):
                with contextlib.suppress(OSError):
                    (self.folder / "lock").unlink()
                    self.folder.rmdir()


def _reason(error: OSError | FolderInUse) -> str:
    if isinstance(error, FolderInUse):
        return "another stream uses it; pass another --spill"
    return error.strerror or str(error)


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
