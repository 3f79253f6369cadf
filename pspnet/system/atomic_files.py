"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` to write to; its folder is created if missing.

    It replaces `path` when the block succeeds; on an exception it is removed and `path` is unchanged. Several of these
    in one `with` replace nothing before all of them are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep the suffix: libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        # Some versions of safetensors write files that only their owner may read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()
