"""Atomic creation of folders."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pspnet.errors import DataError


def is_free(folder: Path) -> bool:
    """True if `folder` does not exist or is empty."""
    if not folder.exists():
        return True
    return folder.is_dir() and not any(folder.iterdir())


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary sibling of `output` to write into; it becomes `output` when the block ends without an exception.

    On any exception, including Ctrl-C, the temporary folder is removed and `output` is unchanged. Raises DataError if
    the disk is full or `output` can't be written or replaced, FileExistsError if `output` was filled meanwhile.
    """
    output = Path(os.path.abspath(output))
    temporary = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _replace_empty(temporary, output)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
        raise DataError(
            f"{output}: cannot be written ({what}). Free some space or choose a writable folder."
        ) from error
    finally:
        # After the rename nothing is left to remove.
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_empty(temporary: Path, output: Path) -> None:
    if output.is_dir():
        try:
            output.rmdir()  # fails unless it is empty, which is the intended test
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # busy, for example a container's volume
                raise
            raise FileExistsError(f"{output} was filled while it was being written") from error
    elif output.exists():
        raise FileExistsError(f"{output} is a file")
    temporary.rename(output)


def make_output_folder(folder: Path) -> None:
    """Create an output folder, which may exist; DataError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--output: {folder} cannot be created ({error.strerror or error}); give another folder."
        ) from error
