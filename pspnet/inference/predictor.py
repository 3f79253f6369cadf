"""Predictor: images in, masks out.

Legend: N images in a batch, H, W image height and width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Dict, overload

import numpy as np
import torch
from torch import nn

from pspnet.artifact.model_directory import load_trained, read_labels
from pspnet.artifact.published import find_model
from pspnet.errors import ImageTooLargeError
from pspnet.inference.image_input import ImageLike, as_array, image_list, is_image
from pspnet.inference.limits import DEFAULT_LIMITS, Limits
from pspnet.inference.prediction import Prediction
from pspnet.inference.runtimes.base import AUTO, Runtime, check_name
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.inference.tiling import enlarge, pad, padded_pixels, scaled_size, shrink, windows
from pspnet.models.constants import MIN_SIZE
from pspnet.system.device import resolve_device

__all__ = ["ImageLike", "Prediction", "Predictor"]

# mask: (H, W) uint8, probabilities: (C, H, W) float32, confidence_map: (H, W) uint8; the last two only if requested.
_Maps = Dict[str, np.ndarray]


class Predictor:
    """A model ready to turn images into masks. Thread-safe.

    >>> predictor = Predictor.load("runs/quickstart/model")
    >>> mask = predictor("frame.jpg")  # (H, W) uint8 class ids, the size of the frame

    Images above `limits.pass_pixels` are handled according to `limits.large_images`. Images with a side below 32 px are
    padded to it by repeating their last row and column. All others run in one forward pass at their own size.

    Args:
        model: a network, or a runtime that is ready.
        class_names: in the order of the ids.
        palette: (256, 3) uint8.
        device: device of a network.
        dtype: precision of a network; None for the fastest of the device (float32 on CPUs).
        limits: image sizes and the handling of larger images.
        runtime: runtime of a network: auto, eager or compile.
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
        """Called before every forward pass; a large image takes many. An exception of it ends `predict`."""
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
        """Read a model directory, or download a published model on first use.

        Args:
            directory: model directory, or the name of a published model such as voc-r50 (docs/models.md).
            device: auto, cpu, cuda or any argument of torch.device.
            dtype: as for Predictor.
            runtime: auto, eager, compile, onnxruntime, openvino, tensorrt, onnxruntime:int8 or openvino:int8. Exported
                graphs are read from the directory; the network itself is then not loaded.

        Raises WeightsError for a directory or an export that is missing, damaged or of another program, and ConfigError
        for an unknown device and for an unknown or unavailable runtime.
        """
        check_name(runtime)
        chosen = resolve_device(device)
        folder = find_model(directory)
        class_names, palette = read_labels(folder)
        source = Source(lambda: load_trained(folder).model, chosen, dtype, folder)
        return cls(open_runtime(runtime, source), class_names, palette, chosen, limits=limits)

    @property
    def model(self) -> nn.Module:
        """The fused inference model; AttributeError if an exported graph runs instead."""
        runtime = getattr(self.runtime, "eager", self.runtime)
        model: nn.Module | None = getattr(runtime, "model", None)
        if model is None:
            raise AttributeError(f"the runtime {self.runtime.name} holds no PyTorch module.")
        return model

    def prepare(self, sizes: Iterable[tuple[int, int]], batch: int = 1) -> None:
        """Choose a runtime, compile and warm up for images of these sizes, ahead of the first one.

        Args:
            sizes: (height, width) of images.
            batch: number of images of one size in a call of `predict`.
        """
        for height, width in dict.fromkeys(self._pass_size(*size) for size in sizes):
            self.runtime.prepare(height, width)
            together = min(batch, self.limits.pass_pixels // (height * width))
            if together > 1:
                self.runtime.prepare(height, width, together)

    def _pass_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the forward passes over an image of this size."""
        if padded_pixels(height, width) > self.limits.pass_pixels:
            if self.limits.large_images == "scale":
                height, width = scaled_size(height, width, self.limits.pass_pixels)
            elif self.limits.large_images != "refuse":
                window = windows(height, width, self.limits.pass_pixels)[0]
                height, width = window.rows.stop - window.rows.start, window.columns.stop - window.columns.start
        return max(height, MIN_SIZE), max(width, MIN_SIZE)

    @overload
    def __call__(self, images: ImageLike) -> np.ndarray: ...  # type: ignore[overload-overlap]  # str is a Sequence

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[np.ndarray]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray | list[np.ndarray]:
        """Return the (H, W) uint8 mask of class ids of one image, or a list of masks for a list of images.

        A mask covers the image's stored pixel grid (EXIF orientation is not applied). Images and errors as `predict`.
        """
        predictions = self._predict_list(images)
        return predictions[0].mask if is_image(images) else [prediction.mask for prediction in predictions]

    @overload
    def predict(  # type: ignore[overload-overlap]  # str is a Sequence
        self, images: ImageLike, probabilities: bool = False, confidence: bool = False
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], probabilities: bool = False, confidence: bool = False
    ) -> list[Prediction]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], probabilities: bool = False, confidence: bool = False
    ) -> Prediction | list[Prediction]:
        """Return the Prediction of one image, or a list of them for a list of images, in its order.

        Images of one size run as batches of limits.pass_pixels.

        Args:
            images: one image or several. An image is a path, a Pillow image, an (H, W), (H, W, 3) or (H, W, 4) uint8
                array, or a (3, H, W) or (H, W, 3) uint8 tensor; RGB, alpha is dropped, grey is repeated.
            probabilities: also compute class probabilities: C * H * W * 4 bytes for each image.
            confidence: also compute the largest probability of every pixel: H * W bytes for each image.

        Raises:
            DataError: an image is unreadable, or of another type, shape or dtype.
            ImageTooLargeError: an image is above limits.pass_pixels, and limits.large_images is `refuse`.
        """
        predictions = self._predict_list(images, probabilities, confidence)
        return predictions[0] if is_image(images) else predictions

    def predict_iter(
        self, images: Iterable[ImageLike], probabilities: bool = False, confidence: bool = False
    ) -> Iterator[Prediction]:
        """Yield the predictions of any number of images in their order, in bounded memory.

        Reads the next images only after the predictions so far were consumed, as many as fit limits.pass_pixels.
        Arguments and errors as `predict`; an error ends the iteration.
        """
        group: list[np.ndarray] = []
        pixels = 0
        for image in map(as_array, image_list(images)):
            added = padded_pixels(*image.shape[:2])
            if group and pixels + added > self.limits.pass_pixels:
                yield from self._predict_list(group, probabilities, confidence)
                group, pixels = [], 0
            group.append(image)
            pixels += added
        yield from self._predict_list(group, probabilities, confidence)

    def _predict_list(
        self, images: ImageLike | Iterable[ImageLike], probabilities: bool = False, confidence: bool = False
    ) -> list[Prediction]:
        arrays = [as_array(image) for image in image_list(images)]
        extras = ("probabilities",) * probabilities + ("confidence_map",) * confidence
        found: dict[int, Prediction] = {}
        for indices in self._batches(arrays):
            first = arrays[indices[0]]
            if padded_pixels(*first.shape[:2]) > self.limits.pass_pixels:
                results = [self._predict_large(first, extras)]
            else:
                results = self._predict_batch([arrays[index] for index in indices], extras)
            for index, maps in zip(indices, results):
                found[index] = Prediction(
                    class_names=self.class_names, palette=self.palette, image=arrays[index], **maps
                )
        return [found[index] for index in range(len(arrays))]

    def _batches(self, arrays: list[np.ndarray]) -> Iterator[list[int]]:
        """Yield indices of images of one size, as many as fit pass_pixels."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(arrays):
            sizes.setdefault(image.shape, []).append(index)
        for shape, indices in sizes.items():
            count = max(1, self.limits.pass_pixels // padded_pixels(*shape[:2]))
            for start in range(0, len(indices), count):
                yield indices[start : start + count]

    def _predict_batch(self, images: list[np.ndarray], extras: Sequence[str]) -> list[_Maps]:
        """Run one forward pass over images of one size."""
        self.before_pass()
        height, width = images[0].shape[:2]
        padded = [pad(image) for image in images]
        pixels = padded[0][np.newaxis] if len(padded) == 1 else np.stack(padded)  # (N, H, W, 3)
        if not extras:
            return [{"mask": mask} for mask in self.runtime.masks(pixels)[:, :height, :width]]
        logits = self.runtime.logits(pixels)[..., :height, :width]  # (N, C, H, W)
        maps = {"mask": logits.argmax(dim=1).to(torch.uint8)}  # (N, H, W)
        if "probabilities" in extras:
            maps["probabilities"] = logits.softmax(dim=1)  # (N, C, H, W)
        if "confidence_map" in extras:
            # exp(largest logit - logsumexp) is the softmax of the largest logit.
            largest = (logits.amax(dim=1) - logits.logsumexp(dim=1)).exp()  # (N, H, W)
            maps["confidence_map"] = (largest * 255).round().to(torch.uint8)
        arrays = {name: values.cpu().numpy() for name, values in maps.items()}
        return [{name: values[index] for name, values in arrays.items()} for index in range(len(images))]

    def _predict_large(self, image: np.ndarray, extras: Sequence[str]) -> _Maps:
        """Predict an image above pass_pixels according to limits.large_images."""
        height, width = image.shape[:2]
        if self.limits.large_images == "refuse":
            raise ImageTooLargeError(height, width, self.limits.pass_pixels)
        if self.limits.large_images == "scale":
            small = shrink(image, *scaled_size(height, width, self.limits.pass_pixels))
            return {
                name: enlarge(values, height, width) for name, values in self._predict_batch([small], extras)[0].items()
            }
        maps: _Maps = {}
        for window in windows(height, width, self.limits.pass_pixels):
            rows, columns = window.kept
            for name, part in self._predict_batch([image[window.rows, window.columns]], extras)[0].items():
                if name not in maps:
                    maps[name] = np.empty((*part.shape[:-2], height, width), part.dtype)
                maps[name][..., window.kept_rows, window.kept_columns] = part[..., rows, columns]
        return maps


def _nothing() -> None:
    return None
