"""Folder of the image cache: on disk, or in memory and emptied when its last user exits."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
from pathlib import Path

from pspnet.data.cache.sample_cache import ImageCache, remove_cached
from pspnet.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no /dev/shm either
    fcntl = None  # type: ignore[assignment]

_TMPFS = Path("/dev/shm")
# Fraction of the free memory that the cache may use; training and, in /dev/shm, the loader's batches need the rest.
_FREE_FRACTION = 0.5


def open_cache(mode: str, limit_gb: float, folder: str, announce: bool = True) -> ImageCache | None:
    """The cache for a mode "memory" or "disk"; None for "none".

    Args:
        limit_gb: size limit in GB of 10^9 bytes; for "memory" also half of the free memory.
        folder: for "disk"; created if missing and kept after the run.
        announce: print notes for the user to standard error.

    Raises ConfigError if the folder cannot be used.
    """
    if mode == "none":
        return None
    limit = int(limit_gb * 1e9)
    if mode == "disk":
        path = Path(os.path.expanduser(folder))
        try:
            path.mkdir(parents=True, exist_ok=True)
            return ImageCache(path, limit, announce)
        except OSError as error:
            raise ConfigError(
                f"cache_dir: {path} cannot be used ({error.strerror or error}); give a writable folder."
            ) from error
    cache = ImageCache(_memory_folder(), limit, announce)
    free = cache.used_bytes() + int(_FREE_FRACTION * min(shutil.disk_usage(cache.folder).free, available_memory()))
    if free < limit:
        cache.limit_bytes = free
        if announce:
            print(
                f"note: cache_images memory uses at most {free / 1e9:.2f} GB, less than cache_limit_gb {limit_gb:g}: "
                f"half of the free memory and of {_TMPFS}.",
                file=sys.stderr,
                flush=True,
            )
    return cache


def available_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes still available to this process, by the system and by the container's limit (cgroup 2 or 1)."""
    found = [2**62]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(max(0, int((cgroup / limit).read_text()) - int((cgroup / usage).read_text())))
    return min(found)


def _memory_folder() -> Path:
    """This user's folder in memory, shared by all processes, without files of a killed run.

    Every process holds a shared lock until it exits, however it exits; only the last one can lock it exclusively.
    """
    if fcntl is None or not _TMPFS.is_dir():
        raise ConfigError(f"cache_images: memory needs Linux's {_TMPFS}; use --cache_images disk.")
    path = _TMPFS / f"pspnet-images-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise ConfigError(f"cache_images: {path} belongs to another user; remove it, or use --cache_images disk.")
        users = os.open(path / "users", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cache_images: {path} cannot be used ({error.strerror or error}); use --cache_images disk."
        ) from error
    _empty_if_unused(path, users)
    fcntl.flock(users, fcntl.LOCK_SH)
    atexit.register(_empty_if_unused, path, users)
    return path


def _empty_if_unused(path: Path, users: int) -> None:
    """Empty the folder if no other process uses it."""
    with contextlib.suppress(OSError):  # another process uses it
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_cached(path)
