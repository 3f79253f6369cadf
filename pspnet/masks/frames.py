"""What travels through the pipeline: a frame, and the frame with its mask.

Legend: H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    index: its number in the source, from 0; frames that were dropped or broken count too.
    image: (H, W, 3) uint8 RGB.
    captured: seconds since the epoch: the producer's time where the source has one, else when it arrived.
    arrived: time.monotonic() when it left the decoder.
    timestamp: seconds since the stream began, from its presentation time.
    labels: what else the source knows of it, such as the number of its fragment.
    """

    index: int
    image: np.ndarray
    captured: float
    arrived: float
    timestamp: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskedFrame:
    """A frame and its mask: (H, W) uint8 class ids; `inferred` is time.monotonic() when the model had it."""

    frame: Frame
    mask: np.ndarray
    inferred: float
