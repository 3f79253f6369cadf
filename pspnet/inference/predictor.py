"""Image in, mask out.

Legend: N images in a batch, H, W image height and width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch import nn

from pspnet.artifact.model_directory import load_trained, read_labels
from pspnet.data.io.images import read_image, to_rgb
from pspnet.errors import DataError
from pspnet.inference.limits import DEFAULT_LIMITS, Limits
from pspnet.inference.runtimes.base import AUTO, Runtime, check_name
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.inference.tiling import enlarge, pad, padded_pixels, scaled_size, shrink, windows
from pspnet.models.constants import MIN_SIZE
from pspnet.serving.protocol.request_error import RequestError
from pspnet.system.device import resolve_device

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

    >>> predictor = Predictor.load("runs/quickstart/model")
    >>> mask = predictor("frame.jpg")  # (H, W) uint8 class ids, the size of the frame

    Images above `limits.pass_pixels` are handled as `limits.large_images` says, those with a side below 32 px with
    their last row and column repeated up to it. Everything else runs in one pass at its own size.

    Args:
        model: a network, or a runtime that is ready.
        class_names: in the order of the ids.
        palette: (256, 3) uint8.
        device: where a network runs.
        dtype: number format of a network; None for the fastest of the device (float32 on CPUs).
        limits: sizes and what happens beyond them.
        runtime: what runs a network: auto, eager or compile.
    """

    def __init__(
        self,
        model: nn.Module | Runtime,
        class_names: tuple[str, ...],
        palette: np.ndarray,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        limits: Limits = DEFAULT_LIMITS,
        runtime: str = AUTO,
    ) -> None:
        self.device = torch.device(device)
        self.class_names = class_names
        self.palette = palette
        self.limits = limits
        self.before_pass: Callable[[], None] = _nothing
        """Called before every pass of the network, of which a large image takes many. What it raises ends `predict`."""
        if isinstance(model, nn.Module):
            network = model.eval()
            self.runtime = open_runtime(runtime, Source(lambda: network, self.device, dtype))
        else:
            self.runtime = model

    @classmethod
    def load(
        cls,
        directory: str | PathLike[str],
        device: str = "auto",
        limits: Limits = DEFAULT_LIMITS,
        dtype: torch.dtype | None = None,
        runtime: str = AUTO,
    ) -> Predictor:
        """Read a model directory.

        Args:
            device: auto, cpu, cuda or what torch.device takes.
            dtype: as for Predictor.
            runtime: auto, eager, compile, onnxruntime, openvino, tensorrt, onnxruntime:int8 or openvino:int8. Exported
                graphs are found in the directory; where one is asked for, the network itself is not read.

        Raises WeightsError for a directory or an export that is missing, damaged or of another program, and ConfigError
        for a device or a runtime that is none or is missing here.
        """
        check_name(runtime)
        chosen = resolve_device(device)
        folder = Path(directory)
        class_names, palette = read_labels(folder)
        source = Source(lambda: load_trained(folder).model, chosen, dtype, folder)
        return cls(open_runtime(runtime, source), class_names, palette, chosen, limits=limits)

    @property
    def model(self) -> nn.Module:
        """The network's inference form, where PyTorch runs it; AttributeError for exported graphs."""
        runtime = getattr(self.runtime, "eager", self.runtime)
        model: nn.Module | None = getattr(runtime, "model", None)
        if model is None:
            raise AttributeError(f"the runtime {self.runtime.name} holds no PyTorch module.")
        return model

    def prepare(self, sizes: Iterable[tuple[int, int]], batch: int = 1) -> None:
        """Do ahead of the first frame what images of these sizes need: choose a runtime, compile, warm up.

        Args:
            sizes: (height, width) of images.
            batch: how many of a size are given to `predict` at once.
        """
        for height, width in dict.fromkeys(self._pass_size(*size) for size in sizes):
            self.runtime.prepare(height, width)
            together = min(batch, self.limits.pass_pixels // (height * width))
            if together > 1:
                self.runtime.prepare(height, width, together)

    def _pass_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the passes that an image of some size takes."""
        if padded_pixels(height, width) > self.limits.pass_pixels:
            if self.limits.large_images == "scale":
                height, width = scaled_size(height, width, self.limits.pass_pixels)
            elif self.limits.large_images != "refuse":
                window = windows(height, width, self.limits.pass_pixels)[0]
                height, width = window.rows.stop - window.rows.start, window.columns.stop - window.columns.start
        return max(height, MIN_SIZE), max(width, MIN_SIZE)

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

    def _predict_batch(self, images: list[np.ndarray], probabilities: bool) -> list[_MaskAndShares]:
        """One pass over images of one size."""
        self.before_pass()
        height, width = images[0].shape[:2]
        padded = [pad(image) for image in images]
        pixels = padded[0][np.newaxis] if len(padded) == 1 else np.stack(padded)  # (N, H, W, 3)
        if not probabilities:
            return [(mask, None) for mask in self.runtime.masks(pixels)[:, :height, :width]]
        logits = self.runtime.logits(pixels)[..., :height, :width]  # (N, C, H, W)
        masks = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()  # (N, H, W)
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


def _nothing() -> None:
    return None


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
