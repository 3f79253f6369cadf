"""Image in, mask out.

Legend: N images in a batch, H, W image height and width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image

from pspnet.data.images import read_image, to_rgb
from pspnet.errors import ConfigError, DataError
from pspnet.models.folded import inference_form
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.serving.artifact import load_artifact
from pspnet.serving.codec import RequestError
from pspnet.serving.limits import DEFAULT_LIMITS, Limits
from pspnet.serving.tiling import enlarge, pad, padded_pixels, scaled_size, shrink, windows

# Evaluated at run time, hence without the `|` that Python 3.8 does not know there.
ImageLike = Union[str, "PathLike[str]", Image.Image, np.ndarray]
# (H, W) uint8 and, where asked for, (C, H, W) float32.
_MaskAndShares = Tuple[np.ndarray, Optional[np.ndarray]]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    mask: (H, W) uint8 class ids.
    class_names: in the order of the ids.
    palette: (256, 3) uint8, a colour for every id.
    image: (H, W, 3) uint8 RGB, the image itself.
    probabilities: (C, H, W) float32, where they were asked for.
    """

    mask: np.ndarray
    class_names: tuple[str, ...]
    palette: np.ndarray
    image: np.ndarray
    probabilities: np.ndarray | None = None


class Predictor:
    """A model ready to turn images into masks. Several threads may call one predictor at the same time.

    `model` is the inference form of the network that the predictor was made of (see pspnet.models.folded).

    >>> predictor = Predictor.load("runs/quickstart/model")
    >>> mask = predictor("frame.jpg")  # (H, W) uint8 class ids, the size of the frame

    Images above `limits.pass_pixels` are handled as `limits.large_images` says, those with a side below 32 px with
    their last row and column repeated up to it. Everything else runs in one pass at its own size.
    """

    def __init__(
        self,
        model: SegmentationNetwork,
        class_names: tuple[str, ...],
        palette: np.ndarray,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.device = torch.device(device)
        self.class_names = class_names
        self.palette = palette
        self.limits = limits
        self.model = inference_form(model.to(self.device), dtype)

    @classmethod
    def load(
        cls,
        directory: str | PathLike[str],
        device: str = "auto",
        limits: Limits = DEFAULT_LIMITS,
        dtype: torch.dtype = torch.float32,
    ) -> Predictor:
        """Read a model directory. `device` is auto, cpu, cuda or what torch.device takes, `dtype` the number format.

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
        return cls(artifact.model, artifact.class_names, artifact.palette, device, dtype, limits)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Class ids of every pixel.

        Args:
            image: path of an image file, Pillow image, or (H, W, 3) uint8 RGB array.

        Returns:
            (H, W) uint8 mask on the image's stored pixel grid (EXIF orientation is not applied).

        Raises:
            DataError: the image is unreadable, or an array of another shape or type.
            RequestError: the image is above limits.pass_pixels, and limits.large_images is `refuse`.
        """
        return self.predict([_as_array(image)])[0].mask

    def predict(self, images: Sequence[np.ndarray], probabilities: bool = False) -> list[Prediction]:
        """Predictions for several images, in their order; those of one size run as batches of limits.pass_pixels.

        Args:
            images: (H, W, 3) uint8 RGB arrays.
            probabilities: whether to give class probabilities too: C * H * W * 4 bytes for each image.

        Raises DataError for arrays of another shape or type, RequestError as `__call__`.
        """
        arrays = [_checked(image) for image in images]
        found: dict[int, Prediction] = {}
        for indices in self._batches(arrays):
            first = arrays[indices[0]]
            if padded_pixels(*first.shape[:2]) > self.limits.pass_pixels:
                results = [self._predict_large(first, probabilities)]
            else:
                results = self._predict_batch([arrays[index] for index in indices], probabilities)
            for index, (mask, shares) in zip(indices, results):
                found[index] = Prediction(mask, self.class_names, self.palette, arrays[index], shares)
        return [found[index] for index in range(len(arrays))]

    def _batches(self, arrays: list[np.ndarray]) -> Iterator[list[int]]:
        """Indices of images of one size, no more at a time than make pass_pixels."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(arrays):
            sizes.setdefault(image.shape, []).append(index)
        for shape, indices in sizes.items():
            count = max(1, self.limits.pass_pixels // padded_pixels(*shape[:2]))
            for start in range(0, len(indices), count):
                yield indices[start : start + count]

    @torch.no_grad()
    def _predict_batch(self, images: list[np.ndarray], probabilities: bool) -> list[_MaskAndShares]:
        """One pass over images of one size."""
        height, width = images[0].shape[:2]
        pixels = torch.from_numpy(np.stack([pad(image) for image in images])).to(self.device)  # (N, H, W, 3), a copy
        logits = self.model(pixels.permute(0, 3, 1, 2))  # (N, C, H, W); channels_last as it lies
        logits = logits[..., :height, :width]
        masks = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()  # (N, H, W)
        if not probabilities:
            return [(mask, None) for mask in masks]
        return list(zip(masks, logits.softmax(dim=1).cpu().numpy()))  # (N, C, H, W)

    def _predict_large(self, image: np.ndarray, probabilities: bool) -> _MaskAndShares:
        """An image above pass_pixels, as limits.large_images says."""
        height, width = image.shape[:2]
        if self.limits.large_images == "refuse":
            raise RequestError(
                413,
                f"The image has {width}x{height} pixels; this endpoint takes at most {self.limits.pass_pixels:,} of "
                "them (PSPNET_PASS_PIXELS) as PSPNET_LARGE_IMAGES is `refuse`. Send a smaller one.",
            )
        if self.limits.large_images == "scale":
            small = shrink(image, *scaled_size(height, width, self.limits.pass_pixels))
            mask, shares = self._predict_batch([small], probabilities)[0]
            return enlarge(mask, height, width), None if shares is None else enlarge(shares, height, width)
        return self._predict_tiles(image, probabilities)

    def _predict_tiles(self, image: np.ndarray, probabilities: bool) -> _MaskAndShares:
        """One pass per window; a pixel is taken from the window in whose middle it lies."""
        height, width = image.shape[:2]
        mask = np.empty((height, width), dtype=np.uint8)
        shares = np.empty((len(self.class_names), height, width), dtype=np.float32) if probabilities else None
        for window in windows(height, width, self.limits.pass_pixels):
            part, part_shares = self._predict_batch([image[window.rows, window.columns]], probabilities)[0]
            rows, columns = window.kept
            mask[window.kept_rows, window.kept_columns] = part[rows, columns]
            if shares is not None and part_shares is not None:
                shares[:, window.kept_rows, window.kept_columns] = part_shares[:, rows, columns]
        return mask, shares


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"the image is an array of shape {image.shape} and type {image.dtype}; expected (H, W, 3) uint8 RGB."
        )
    if not image.size:
        raise DataError(f"the image is an array of shape {image.shape}, which holds no pixels.")
    return image


def _as_array(image: ImageLike) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reads the pixels only now
            raise DataError(f"the image cannot be read: {error}.") from error
    return read_image(Path(image))
