"""Training transforms: one affine warp for scale, rotation, crop and flip, a pipeline, blur and colour jitter.

Legend: H, W image height and width; S crop_size.

All random numbers come from the caller's generator, so a sample is a pure function of (seed, epoch, index), independent
of the number of workers and of resuming. There is no evaluation transform: images are scored at their own size, and the
model normalises them.
"""

from __future__ import annotations

import cv2
import numpy as np

from pspnet.data.augmentation import Augmentation, import_albumentations

# One thread per worker: OpenCV's threads would compete with the loader's processes.
cv2.setNumThreads(0)

_FOUR_CHANNELS = int(cv2.__version__.split(".")[0]) >= 5

_MEAN_COLOUR = (124, 116, 104)  # ImageNet's mean in RGB: zero after normalisation


class TrainTransform:
    """Random window (scale on the long side, rotation, crop, flip), pipeline, blur and colour jitter of an image.

    Args:
        crop_size: S, side of the square output, in pixels.
        base_size: the long side is scaled to base_size x U(scale_min, scale_max), as the built-in algorithm does.
        scale_min, scale_max: bounds of that factor.
        flip: probability of a horizontal flip.
        rotation: maximum angle in degrees, in both directions (PSPNet's recipe for VOC and ADE20K: 10).
        blur: probability of a Gaussian blur.
        color_jitter: strength 0..1 for brightness, contrast and saturation; a quarter of it for hue.
        ignore_index: fill value of the mask outside the image.
        augmentation: pipeline applied to the window.
        window: False gives the full image to the pipeline.
    """

    def __init__(
        self,
        crop_size: int,
        base_size: int,
        scale_min: float = 0.5,
        scale_max: float = 2.0,
        flip: float = 0.5,
        rotation: float = 0.0,
        blur: float = 0.0,
        color_jitter: float = 0.0,
        ignore_index: int = 255,
        augmentation: Augmentation | None = None,
        window: bool = True,
    ) -> None:
        self.crop_size = crop_size
        self.base_size = base_size
        self.scale_range = (scale_min, scale_max)
        self.flip = flip
        self.rotation = rotation
        self.blur = blur
        self.color_jitter = color_jitter
        self.ignore_index = ignore_index
        self.augmentation = augmentation
        self.window = window
        self._jitter = None
        if color_jitter > 0:
            module = import_albumentations(f"color_jitter = {color_jitter}", "set color_jitter to 0")
            self._jitter = module.ColorJitter(p=1.0)

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB and (H, W) uint8 -> (S, S, 3) uint8 and (S, S) uint8."""
        if self.window:
            matrix = self._sample_window(image.shape[0], image.shape[1], rng)
            image, mask = self._warp(image, mask, matrix)
        if self.augmentation is not None:
            image, mask = self.augmentation(image, mask, rng)
        image = self._blur(image, rng)
        return self._recolour(image, rng), mask

    def _sample_window(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """The 2x3 matrix from crop pixels to image pixels, so that only the crop's pixels are computed."""
        scale = self.base_size * rng.uniform(*self.scale_range) / max(height, width)
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
        # The crop's centre in the scaled image: the crop stays inside the image, or the image inside the crop if it is
        # smaller.
        slack_x, slack_y = width * scale - self.crop_size, height * scale - self.crop_size
        centre_x = (width * scale + rng.uniform(-1, 1) * abs(slack_x)) / 2 / scale
        centre_y = (height * scale + rng.uniform(-1, 1) * abs(slack_y)) / 2 / scale
        mirror = -1.0 if rng.random() < self.flip else 1.0
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        # Pixel centres are at half-integers of the continuous image, hence the two halves.
        linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
        half = (self.crop_size - 1) / 2
        offset = np.array([centre_x - 0.5, centre_y - 0.5]) - linear @ np.array([half, half])
        return np.concatenate([linear, offset[:, None]], axis=1)

    def _warp(self, image: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = (self.crop_size, self.crop_size)
        flags = cv2.WARP_INVERSE_MAP
        rows, columns = self._source_region(image.shape[0], image.shape[1], matrix)
        image, mask = image[rows, columns], mask[rows, columns]
        matrix = matrix - np.array([[0, 0, columns.start], [0, 0, rows.start]])
        # The result is the same, but OpenCV 5 vectorises four channels and not three. For a region much larger than the
        # crop, the conversion would cost more than it saves.
        padded = _FOUR_CHANNELS and image.size < 8 * 3 * self.crop_size**2
        warped = cv2.warpAffine(
            cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if padded else image,
            matrix,
            size,
            flags=flags | cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=_MEAN_COLOUR,
        )
        if padded:
            warped = cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)
        warped_mask = cv2.warpAffine(
            mask,
            matrix,
            size,
            flags=flags | cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(self.ignore_index,),
        )
        return warped, warped_mask

    def _source_region(self, height: int, width: int, matrix: np.ndarray) -> tuple[slice, slice]:
        """Rows and columns of the image that the crop is interpolated from, plus a margin of at least one."""
        last = self.crop_size - 1
        corners = matrix @ np.array([[0, last, 0, last], [0, 0, last, last], [1, 1, 1, 1]])  # (2, 4): x, y
        slices = []
        for positions, side in zip(corners, (width, height)):
            first = min(max(int(positions.min()) - 2, 0), side - 1)
            slices.append(slice(first, min(max(int(positions.max()) + 3, first + 1), side)))
        columns, rows = slices
        return rows, columns

    def _blur(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.blur <= 0 or rng.random() >= self.blur:
            return image
        return cv2.GaussianBlur(image, ksize=(0, 0), sigmaX=rng.uniform(0.2, 1.2))

    def _recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self._jitter is None:
            return image
        low, high = 1 - self.color_jitter, 1 + self.color_jitter
        brightness, contrast, saturation = rng.uniform(low, high, size=3)
        hue = rng.uniform(-0.25, 0.25) * self.color_jitter
        # `apply` with explicit parameters: albumentations' own generators differ between versions.
        result: np.ndarray = self._jitter.apply(
            image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, order=rng.permutation(4)
        )
        return result
