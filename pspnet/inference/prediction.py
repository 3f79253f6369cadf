"""A mask with its image and classes, and its conversions: overlay, PNG file, confidences, pixel counts.

Legend: H, W image height and width, C classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pspnet.data.io.images import write_palette_png
from pspnet.errors import ConfigError
from pspnet.masks.blending import overlay
from pspnet.masks.class_counts import class_counts

_REPR_CLASSES = 3


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    mask: (H, W) uint8 class ids.
    class_names: in the order of the ids.
    palette: (256, 3) uint8, a colour for every id.
    image: (H, W, 3) uint8 RGB, the image itself.
    probabilities: (C, H, W) float32, None unless requested.
    confidence_map: (H, W) uint8, None unless requested.
    """

    mask: np.ndarray
    class_names: tuple[str, ...]
    palette: np.ndarray
    image: np.ndarray
    probabilities: np.ndarray | None = None
    confidence_map: np.ndarray | None = None

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """Return the image blended with the mask's colours."""
        return Image.fromarray(overlay(self.image, self.mask, self.palette, opacity))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask atomically as a palette PNG whose indices are the class ids.

        Raises ConfigError for a name that does not end in .png, OSError if the file cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise ConfigError(f"{path}: a mask is saved as PNG, which keeps class ids; give a name that ends in .png.")
        write_palette_png(Path(path), self.mask, self.palette)

    def confidence(self) -> np.ndarray:
        """Return (H, W) uint8, the largest class probability of every pixel x 255.

        Raises ConfigError unless the prediction was made with confidence=True or probabilities=True.
        """
        if self.confidence_map is not None:
            return self.confidence_map
        if self.probabilities is None:
            raise ConfigError("the prediction has no confidences; predict with confidence=True or probabilities=True.")
        levels: np.ndarray = np.rint(self.probabilities.max(axis=0) * 255).astype(np.uint8)  # (C, H, W) -> (H, W)
        return levels

    def counts(self) -> list[dict[str, Any]]:
        """Return id, name, pixels and fraction of every class in the mask, in the order of the ids."""
        return class_counts(self.mask, self.class_names)

    def _repr_png_(self) -> bytes:
        """The overlay, which notebooks display."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.mask.shape
        counts = sorted(self.counts(), key=lambda entry: -entry["pixels"])
        largest = ", ".join(f"{entry['name']} {100 * entry['fraction']:.1f} %" for entry in counts[:_REPR_CLASSES])
        more = ", ..." if len(counts) > _REPR_CLASSES else ""
        return f"Prediction({width}x{height}, {len(counts)} of {len(self.class_names)} classes: {largest}{more})"
