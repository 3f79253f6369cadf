"""Frame of a source, and frame with its mask.

Legend: H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    index: number in the source, from 0; dropped and broken frames count too.
    image: (H, W, 3) uint8 RGB.
    captured: seconds since the epoch: the producer's time if the source has one, else the arrival.
    arrived: time.monotonic() when the frame left the decoder.
    timestamp: seconds since the stream began, from the presentation time.
    labels: additional metadata of the source, such as the fragment number.
    """

    index: int
    image: np.ndarray
    captured: float
    arrived: float
    timestamp: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskedFrame:
    """A frame and its mask: (H, W) uint8 class ids; `inferred` is time.monotonic() after the forward pass."""

    frame: Frame
    mask: np.ndarray
    inferred: float
