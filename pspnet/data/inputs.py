"""Images of a command line: files, folders and patterns."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pspnet.data.channels import list_files
from pspnet.data.io.images import IMAGE_SUFFIXES
from pspnet.errors import DataError


def find_images(arguments: Sequence[str], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Images of the arguments (files, images directly in folders, matches of patterns), in their order.

    Raises DataError for an argument without images and for two images whose masks would have the same name."""
    paths: list[Path] = []
    for text in arguments:
        path = Path(text)
        if path.is_dir():
            found = list_files(path, suffixes, "images")
        elif path.is_file():
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(text)) if Path(match).suffix.lower() in suffixes]
        if not found:
            raise DataError(f"{text}: no such image file, and no image found there ({', '.join(suffixes)}).")
        paths += found
    paths = list(dict.fromkeys(paths))
    doubled = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if doubled:
        same = ", ".join(str(path) for path in paths if path.stem == doubled[0])
        raise DataError(
            f"{same}: their masks would all be named {doubled[0]}.png; predict them into different folders."
        )
    return paths
