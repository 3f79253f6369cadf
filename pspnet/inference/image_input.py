"""Every kind of image that prediction accepts -> (H, W, 3) uint8 RGB array.

Legend: H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from PIL import Image

from pspnet.data.io.images import read_image, to_rgb
from pspnet.errors import DataError

# Evaluated at run time, so without the `|` between types that Python 3.8 lacks.
ImageLike = Union[str, "PathLike[str]", Image.Image, np.ndarray, torch.Tensor]
"""Path of a JPEG or PNG file, Pillow image, (H, W), (H, W, 3) or (H, W, 4) uint8 array, or (3, H, W) or (H, W, 3) uint8
tensor. Channels are RGB; the fourth, alpha, is dropped."""

_EXPECTED = "expected (H, W), (H, W, 3) or (H, W, 4) uint8 RGB"
_EXPECTED_TENSOR = "expected (3, H, W) or (H, W, 3) uint8 RGB"


def is_image(value: object) -> bool:
    """Return whether a value is one image rather than several."""
    return isinstance(value, (str, PathLike, Image.Image, np.ndarray, torch.Tensor))


def image_list(images: Any) -> Iterable[Any]:
    """One image as a list of it, several as they are; DataError if the value is neither."""
    if is_image(images):
        return [images]
    if isinstance(images, (bytes, bytearray, dict)) or not isinstance(images, Iterable):
        raise DataError(_unknown_type(images))
    return images


def as_array(image: ImageLike) -> np.ndarray:
    """Return an image as (H, W, 3) uint8 RGB; an array that has this form is returned without a copy.

    Raises DataError for an unreadable file or image, another type, shape or dtype, and an image without pixels.
    """
    if isinstance(image, (str, PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes lazily
            raise DataError(f"the image cannot be read: {error}.") from error
    if isinstance(image, torch.Tensor):
        return _tensor_array(image)
    if not isinstance(image, np.ndarray):
        raise DataError(_unknown_type(image))
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise DataError(f"the image is an array of shape {image.shape} and type {image.dtype}; {_EXPECTED}.")
    if not image.size:
        raise DataError(f"the image is an array of shape {image.shape}, which holds no pixels.")
    if image.ndim == 2:
        return np.repeat(image[..., np.newaxis], 3, axis=2)  # (H, W) -> (H, W, 3)
    return image[..., :3] if image.shape[2] == 4 else image


def _tensor_array(image: torch.Tensor) -> np.ndarray:
    shape = tuple(image.shape)
    if image.dtype != torch.uint8 or image.ndim != 3 or 3 not in (shape[0], shape[2]):
        raise DataError(f"the image is a tensor of shape {shape} and type {image.dtype}; {_EXPECTED_TENSOR}.")
    if not image.numel():
        raise DataError(f"the image is a tensor of shape {shape}, which holds no pixels.")
    pixels = image.permute(1, 2, 0) if shape[0] == 3 else image  # (H, W, 3)
    array: np.ndarray = pixels.detach().cpu().numpy()
    return array


def _unknown_type(value: object) -> str:
    return (
        f"the image is of type {type(value).__name__}; expected a path, a Pillow image, a numpy array, a torch tensor, "
        "or a list of them."
    )
