"""Where decoded images are kept: a folder on a disk, or one in memory that is emptied when its last user ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
from pathlib import Path

from pspnet.data.cache.sample_cache import ImageCache, remove_kept
from pspnet.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no /dev/shm either
    fcntl = None  # type: ignore[assignment]

PLACES = ("none", "memory", "disk")
_TMPFS = Path("/dev/shm")
# Of the memory that is free now, the share that the cache may take: the rest is for the training, and in /dev/shm for
# the batches that the loader's workers pass on.
_FREE_SHARE = 0.5


def open_cache(place: str, limit_gb: float, folder: str, announce: bool = True) -> ImageCache | None:
    """The cache for one of PLACES, None for "none".

    Args:
        limit_gb: most that it takes, in GB of 10^9 bytes; for "memory" also half of what is free.
        folder: of "disk"; made if need be. It outlives the run.
        announce: whether this process tells what the user should know, on standard error.

    Raises ConfigError where the folder cannot be used.
    """
    if place == "none":
        return None
    limit = int(limit_gb * 1e9)
    if place == "disk":
        path = Path(os.path.expanduser(folder))
        try:
            path.mkdir(parents=True, exist_ok=True)
            return ImageCache(path, limit, announce)
        except OSError as error:
            raise ConfigError(
                f"cache_dir: {path} cannot be used ({error.strerror or error}); give a folder that can be written."
            ) from error
    cache = ImageCache(_memory_folder(), limit, announce)
    free = cache.used_bytes() + int(_FREE_SHARE * min(shutil.disk_usage(cache.folder).free, available_memory()))
    if free < limit:
        cache.limit_bytes = free
        if announce:
            print(
                f"note: cache_images memory takes {free / 1e9:.2f} GB at most, less than cache_limit_gb {limit_gb:g}: "
                f"half of what memory and {_TMPFS} have free.",
                file=sys.stderr,
                flush=True,
            )
    return cache


def available_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that this process could still take, by the system and by the container's limit (cgroup 2 or 1)."""
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
    """This user's folder in memory, shared by all processes, without what a killed run left there.

    A lock that every user holds for its life, and that the system releases however it ends, tells who is the last.
    """
    if fcntl is None or not _TMPFS.is_dir():
        raise ConfigError(f"cache_images: memory needs Linux's {_TMPFS}; use --cache_images disk.")
    path = _TMPFS / f"pspnet-images-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise ConfigError(f"cache_images: {path} belongs to somebody else; remove it, or use --cache_images disk.")
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
    """Empty the folder if no other process has opened it."""
    with contextlib.suppress(OSError):  # somebody has
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_kept(path)
