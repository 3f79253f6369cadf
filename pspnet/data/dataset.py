"""Dataset of image and annotation pairs. Samples are uint8 pixels: the model normalises them, on its own device.

Legend: H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
from torch.utils.data import Dataset

from pspnet.classes import IGNORE_INDEX, LabelMap
from pspnet.data.cache.sample_cache import ImageCache
from pspnet.data.channels import Pair, label_problem
from pspnet.data.io.images import read_annotation, read_image
from pspnet.errors import DataError


def read_pair(
    pair: Pair,
    num_classes: int,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    channel: str = "train",
    cache: ImageCache | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB and (H, W) uint8 class ids of one pair, with `ignore_index` replaced by 255.

    The arrays may be read-only. With a cache, only files missing from it are decoded.

    Raises DataError for unreadable files, different sizes and class ids outside num_classes.
    """
    decoded = None if cache is None else cache.read(pair)
    if decoded is None:
        decoded = decode_pair(pair)
        if cache is not None:
            cache.write(pair, *decoded)
    image, mask = decoded
    return image, to_class_ids(mask, pair.annotation, num_classes, label_map, ignore_index, channel)


def decode_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB and (H, W) uint8 pixel values of the two files of one pair.

    Raises DataError for unreadable files and different sizes.
    """
    image = read_image(pair.image)
    mask = read_annotation(pair.annotation)
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{pair.annotation}: the mask is {mask.shape[1]}x{mask.shape[0]} px but its image {pair.image} is "
            f"{image.shape[1]}x{image.shape[0]} px; expected the same size. Write the mask on the image's stored pixel "
            "grid (EXIF rotation is not applied)."
        )
    return image, mask


def to_class_ids(
    mask: np.ndarray,
    path: Path,
    num_classes: int,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    channel: str = "train",
) -> np.ndarray:
    """(H, W) uint8 pixel values of the annotation `path` -> class ids, with `ignore_index` replaced by 255.

    Raises DataError for class ids outside num_classes.
    """
    if label_map is not None:
        mask = label_map.apply(mask)
    if ignore_index != IGNORE_INDEX:
        mask = np.where(mask == ignore_index, np.uint8(IGNORE_INDEX), mask)
    # uint8 arithmetic: 255 + 1 is 0, so one max() checks all ids. np.unique is slow and runs only on errors.
    if (mask + np.uint8(1)).max() > num_classes:
        wrong = [int(value) for value in np.unique(mask) if num_classes <= value < IGNORE_INDEX]
        raise DataError(label_problem(wrong, num_classes, label_map, path, channel))
    return mask


class SegmentationDataset(Dataset[Any]):
    """Pairs of a channel as arrays; with a transform, random crops that depend only on (seed, epoch, index).

    A broken sample is returned as its DataError and raised by `load_batches`, because an exception raised in a worker
    process would include that worker's traceback.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        num_classes: int,
        transform: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None,
        label_map: LabelMap | None = None,
        ignore_index: int = IGNORE_INDEX,
        seed: int = 0,
        channel: str = "train",
        cache: ImageCache | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.num_classes = num_classes
        self.transform = transform
        self.label_map = label_map
        self.ignore_index = ignore_index
        self.seed = seed
        self.channel = channel
        self.cache = cache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str] | DataError:
        """Sample `index` of `epoch`: (H, W, 3) uint8, (H, W) uint8 and the image's file name."""
        epoch, index = key
        pair = self.pairs[index]
        try:
            image, mask = read_pair(pair, self.num_classes, self.label_map, self.ignore_index, self.channel, self.cache)
            if self.transform is not None:
                image, mask = self.transform(image, mask, np.random.default_rng([self.seed, epoch, index]))
        except DataError as error:
            return error
        return image, mask, str(pair.image)
