"""What turns a frame into a mask: a model in this process, or an endpoint. Torch is imported when a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pspnet.errors import PspnetError


class ModelUnavailable(PspnetError):
    """The model cannot be asked now, whatever the frame; later it may answer again."""


class Model(Protocol):
    """Frames to masks. Used by one thread.

    class_names: in the order of the ids, as far as they are known. palette: (256, 3) uint8 colours.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray

    def prepare(self, height: int, width: int) -> None:
        """Get ready for frames of a size, so that the first one does not wait for it."""
        ...

    def mask(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8 class ids.

        Raises PspnetError for a frame that has no mask, ModelUnavailable where another frame would fare no better.
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
        """Read a model directory; `options` are those of Predictor.load. Raises WeightsError and ConfigError."""
        from pspnet.inference.predictor import Predictor

        return cls(Predictor.load(directory, device, **options))

    def prepare(self, height: int, width: int) -> None:
        """Choose a runtime for this size by a short trial, compile, warm up: what no frame should wait for."""
        self._predictor.prepare([(height, width)])

    def mask(self, image: np.ndarray) -> np.ndarray:
        """As Model."""
        mask: np.ndarray = self._predictor(image)
        return mask

    def close(self) -> None:
        """Nothing is open."""
