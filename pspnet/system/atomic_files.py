"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; its folder is made if need be.

    It takes the place of `path` when the block ends well, and is removed when it does not: then `path` is as it was.
    Several of these in one `with` replace nothing before all of them are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, since libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        # Some versions of safetensors write files that nobody but their owner may read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()
