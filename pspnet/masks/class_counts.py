"""Pixel counts of the classes in a mask, in the one JSON shape of the endpoint, the webhook and the Lambda function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def class_counts(mask: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return id, name, pixels and fraction (six decimals) of every class in an (H, W) uint8 mask, by ascending id."""
    pixels = np.bincount(mask.ravel(), minlength=1)
    return [
        {
            "id": int(index),
            "name": class_name(int(index), class_names),
            "pixels": int(pixels[index]),
            "fraction": round(float(pixels[index] / mask.size), 6),
        }
        for index in np.flatnonzero(pixels)
    ]


def class_name(index: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, `class_5` if it has none."""
    return class_names[index] if index < len(class_names) else f"class_{index}"
