"""Keys of the folder settings, and the folders derived from `data` and `name`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pspnet.config.values import parse_str

SHAPES = "shapes"
"""The value of `data` that stands for the built-in synthetic set."""

REQUIRED_CHANNELS = ("train", "train_annotation", "validation", "validation_annotation")
CHANNELS = (*REQUIRED_CHANNELS, "label_map", "model")
"""Keys of the data channels, named as SageMaker's channels are; the last two may be left out."""

OUTPUT_FOLDERS = {"model_dir": "model", "output_dir": "", "checkpoint_dir": "checkpoints"}
"""Keys of the output folders, and where each lies under runs/<name>."""

FOLDERS = ("data", *CHANNELS, *OUTPUT_FOLDERS)


def derived_folders(values: Mapping[str, object]) -> dict[str, str]:
    """Folders that follow from `data` and `name` where they are not given themselves.

    `data` always stands for the four required channels, and for label_map and model if it holds such folders.
    """
    run = os.path.join("runs", _text(values.get("name")) or "run")
    folders = {key: os.path.join(run, part) if part else run for key, part in OUTPUT_FOLDERS.items()}
    data = os.path.expanduser(_text(values.get("data")))
    if data and data != SHAPES:
        for key in CHANNELS:
            folder = os.path.join(data, key)
            if key in REQUIRED_CHANNELS or os.path.isdir(folder):
                folders[key] = folder
    return folders


def _text(value: object) -> str:
    try:
        return parse_str(value)
    except ValueError:  # reported with the key it belongs to
        return ""
