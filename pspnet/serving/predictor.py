"""Image in, mask out.

Legend: H, W image height and width; C classes.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Union

import numpy as np
import torch
from PIL import Image

from pspnet.data.images import read_image, to_rgb
from pspnet.errors import ConfigError, DataError
from pspnet.evaluation.protocols import predict_whole
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.serving.artifact import load_artifact

# Evaluated at run time, hence without the `|` that Python 3.8 does not know there.
ImageLike = Union[str, "PathLike[str]", Image.Image, np.ndarray]


class Predictor:
    """A model ready to turn images into masks.

    >>> predictor = Predictor.load("runs/quickstart/model")
    >>> mask = predictor("frame.jpg")  # (H, W) uint8 class ids, the size of the frame
    """

    def __init__(
        self,
        model: SegmentationNetwork,
        class_names: tuple[str, ...],
        palette: np.ndarray,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().to(memory_format=torch.channels_last)
        self.class_names = class_names
        self.palette = palette
        self.autocast_dtype = autocast_dtype

    @classmethod
    def load(cls, directory: str | PathLike[str], device: str = "auto") -> Predictor:
        """Read a model directory. `device` is auto, cpu, cuda or what torch.device takes.

        Raises WeightsError for a directory that is missing, damaged or of another program, and ConfigError for a
        device that is none.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"device = {device!r} is none that PyTorch knows; use auto, cpu or cuda.") from error
        artifact = load_artifact(Path(directory))
        return cls(artifact.model, artifact.class_names, artifact.palette, device)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Class ids of every pixel.

        Args:
            image: path of an image file, Pillow image, or (H, W, 3) uint8 RGB array.

        Returns:
            (H, W) uint8 mask on the image's stored pixel grid (EXIF orientation is not applied).

        Raises:
            DataError: the image is unreadable, or an array of another shape or type.
            PspnetError: the image is smaller than 32 x 32 px.
        """
        pixels = torch.from_numpy(np.array(_as_array(image)))  # (H, W, 3)
        # Batched before it is permuted: with the other order's batch stride PyTorch 1.12 computes a deep stem wrongly.
        images = pixels.unsqueeze(0).permute(0, 3, 1, 2).to(self.device)  # (1, 3, H, W), channels_last as it lies
        mask = predict_whole(self.model, images, self.autocast_dtype)  # (1, H, W)
        result: np.ndarray = mask[0].to(torch.uint8).cpu().numpy()  # (H, W)
        return result


def _as_array(image: ImageLike) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"the image is an array of shape {image.shape} and type {image.dtype}; expected (H, W, 3) uint8 RGB."
            )
        return image
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reads the pixels only now
            raise DataError(f"the image cannot be read: {error}.") from error
    return read_image(Path(image))
