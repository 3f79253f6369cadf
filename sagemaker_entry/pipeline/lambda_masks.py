"""Reader of mask files on S3: a segment, or a PNG file of one mask. Needs NumPy and Pillow, not torch.

Legend: H, W mask height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pspnet.masks.reader import MaskRecord, read_masks
from pspnet.masks.segment import PNG_SUFFIX, SUFFIX, read_name


@dataclass(frozen=True)
class StoredMask:
    """A mask with the metadata of its file: (H, W) uint8 class ids, class names, and values for JSON."""

    mask: np.ndarray
    class_names: tuple[str, ...]
    about: Mapping[str, Any]


def is_mask_file(key: str) -> bool:
    """Return True for the key of a complete mask file."""
    return key.endswith((SUFFIX, PNG_SUFFIX))


def read_frames(content: bytes, key: str, class_names: tuple[str, ...]) -> Iterator[StoredMask]:
    """Yield the masks of a file in order; `class_names` for masks without names. Raises MaskFileError."""
    for record in read_masks(content):
        yield StoredMask(record.mask, record.class_names or class_names, _about(record, key))


def _about(record: MaskRecord, key: str) -> dict[str, Any]:
    """Return frame number and times of a mask; unknown values are left out."""
    frame, captured = record.frame, record.captured
    name = read_name(PurePosixPath(key).name)
    if captured <= 0 and name is not None:
        # A PNG file of another program that follows our naming scheme.
        frame, captured = name.frame, name.captured
    found: dict[str, Any] = {"frame": frame}
    times = {"captured": captured or math.nan, "timestamp": record.timestamp, "latency": record.latency}
    found |= {field: round(value, 6) for field, value in times.items() if math.isfinite(value)}
    return {**found, "labels": dict(record.labels)} if record.labels else found
