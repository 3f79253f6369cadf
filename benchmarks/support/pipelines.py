"""Training data pipelines of other libraries, after their documentation, for `benchmarks/data.py`.

Each builder takes crop_size and base_size and returns a function from a pair of files to a normalised (3, S, S) float32
image and an (S, S) int64 mask, or None if the library is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Callable, Optional, Tuple

import cv2
import numpy as np
import torch
from PIL import Image

from pspnet.data.channels import Pair
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD

Sample = Callable[[Pair, np.random.Generator], Tuple[torch.Tensor, torch.Tensor]]

_MEAN, _STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
_FILL = (124, 116, 104)
_IGNORE = 255


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> float32, normalised as in the network."""
    mean, std = (torch.from_numpy(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return images.float().sub_(mean).div_(std)


def _read_mask(pair: Pair) -> np.ndarray:
    with Image.open(pair.annotation) as mask:
        return np.array(mask)


def albumentations_chain(crop_size: int, base_size: int) -> Optional[Sample]:
    """albumentations' Compose, as in its segmentation guide."""
    try:
        import albumentations
        from albumentations.pytorch import ToTensorV2
    except ImportError:
        return None
    # The fill arguments were renamed in version 2.
    newer = int(albumentations.__version__.split(".")[0]) >= 2
    fill: Mapping[str, Any] = (
        {"fill": _FILL, "fill_mask": _IGNORE} if newer else {"value": _FILL, "mask_value": _IGNORE}
    )

    @lru_cache(maxsize=None)
    def compose(long_side: int) -> Any:
        """The pipeline for images of a size, since albumentations takes relative scales."""
        factor = base_size / long_side
        return albumentations.Compose(
            [
                albumentations.RandomScale((0.5 * factor - 1, 2 * factor - 1), p=1.0),
                albumentations.PadIfNeeded(crop_size, crop_size, border_mode=cv2.BORDER_CONSTANT, **fill),
                albumentations.RandomCrop(crop_size, crop_size),
                albumentations.HorizontalFlip(p=0.5),
                albumentations.Normalize(),
                ToTensorV2(),
            ]
        )

    def sample(pair: Pair, _: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.cvtColor(np.asarray(cv2.imread(str(pair.image))), cv2.COLOR_BGR2RGB)
        made = compose(max(image.shape[:2]))(image=image, mask=_read_mask(pair))
        return made["image"], made["mask"].long()

    return sample


def torchvision_chain(crop_size: int, base_size: int) -> Optional[Sample]:
    """torchvision's functional v2 transforms on tv_tensors, with its own JPEG decoder."""
    try:
        from torchvision import tv_tensors
        from torchvision.io import ImageReadMode, decode_jpeg, read_file
        from torchvision.transforms.v2 import functional
    except ImportError:
        return None

    def sample(pair: Pair, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        image = tv_tensors.Image(decode_jpeg(read_file(str(pair.image)), mode=ImageReadMode.RGB))
        mask = tv_tensors.Mask(torch.from_numpy(_read_mask(pair)))
        height, width, left, top = _draw_window(image.shape[-2], image.shape[-1], crop_size, base_size, rng)
        right, bottom = max(0, crop_size - width), max(0, crop_size - height)
        mirrored = rng.random() < 0.5
        made = []
        for part, fill in ((image, list(_FILL)), (mask, _IGNORE)):
            scaled = functional.resize(part, [height, width])
            padded = functional.pad(scaled, [0, 0, right, bottom], fill=fill) if right or bottom else scaled
            cropped = functional.crop(padded, top, left, crop_size, crop_size)
            made.append(functional.horizontal_flip(cropped) if mirrored else cropped)
        pixels = functional.to_dtype(made[0], torch.float32, scale=True)
        mean, std = ((values / 255).tolist() for values in (_MEAN, _STD))
        return functional.normalize(pixels, mean, std), made[1].long()

    return sample


def pillow_chain(crop_size: int, base_size: int) -> Optional[Sample]:
    """Pillow for the images, numpy for the arithmetic."""

    def sample(pair: Pair, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(pair.image) as opened, Image.open(pair.annotation) as mask:
            image = opened.convert("RGB")
            height, width, left, top = _draw_window(image.height, image.width, crop_size, base_size, rng)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        box = (left, top, left + min(width, crop_size), top + min(height, crop_size))
        canvas, ids = Image.new("RGB", (crop_size, crop_size), _FILL), Image.new("L", (crop_size, crop_size), _IGNORE)
        canvas.paste(image.crop(box))
        ids.paste(Image.fromarray(np.asarray(mask.crop(box))))
        if rng.random() < 0.5:
            canvas, ids = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (canvas, ids))
        pixels = (np.asarray(canvas, np.float32) - _MEAN) / _STD  # (S, S, 3)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(np.array(ids, np.int64))

    return sample


def _draw_window(
    height: int, width: int, crop_size: int, base_size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Height and width of the scaled image, left and top of the crop."""
    scale = base_size * rng.uniform(0.5, 2.0) / max(height, width)
    height, width = round(height * scale), round(width * scale)
    left, top = (int(rng.integers(max(0, side - crop_size) + 1)) for side in (width, height))
    return height, width, left, top


PIPELINES: dict[str, Callable[[int, int], Optional[Sample]]] = {
    "albumentations": albumentations_chain,
    "torchvision v2": torchvision_chain,
    "Pillow": pillow_chain,
}
