"""Model protocol of a stream, and a model directory in this process. Torch is imported when a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pspnet.errors import PspnetError


class ModelUnavailable(PspnetError):
    """The model is temporarily unavailable for every frame; the request may succeed later."""


class Model(Protocol):
    """Model that turns frames into masks. Used by one thread.

    class_names: in the order of the ids; empty if unknown. palette: (256, 3) uint8 colours.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray

    def prepare(self, height: int, width: int) -> None:
        """Warm up for a frame size, so that the first frame has normal latency."""
        ...

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Predict (H, W) uint8 class ids of an (H, W, 3) uint8 RGB image.

        Raises PspnetError if this frame cannot be predicted, ModelUnavailable if no frame can be predicted now.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class LocalModel:
    """A model directory in this process."""

    def __init__(self, predictor: Any) -> None:
        """`predictor` is a pspnet.Predictor."""
        self._predictor = predictor
        self.class_names: tuple[str, ...] = predictor.class_names
        self.palette: np.ndarray = predictor.palette

    @classmethod
    def load(cls, directory: Path, device: str = "auto", **options: Any) -> LocalModel:
        """Load a model directory; `options` are those of Predictor.load. Raises WeightsError and ConfigError."""
        from pspnet.inference.predictor import Predictor

        return cls(Predictor.load(directory, device, **options))

    def prepare(self, height: int, width: int) -> None:
        """Select a runtime by a short trial, compile and warm up for this size."""
        self._predictor.prepare([(height, width)])

    def mask(self, image: np.ndarray) -> np.ndarray:
        """See Model."""
        mask: np.ndarray = self._predictor(image)
        return mask

    def close(self) -> None:
        """See Model."""
