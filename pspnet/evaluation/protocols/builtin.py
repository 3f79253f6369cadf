"""Protocol `builtin`: estimate of the score that the built-in Semantic Segmentation algorithm would report.

The algorithm is closed, but documented as built on Gluon CV, whose steps these are (gluoncv/data/segbase.py, function
`_val_sync_transform`, and gluoncv/utils/metrics/segmentation.py):

1. The short side is resized to crop_size, the long side follows in proportion, rounded down: the image bilinear in
   Pillow's way (averaging when it shrinks), the mask by nearest neighbour.
2. The centre crop_size x crop_size px of both are cropped, so the ends of the long side are never scored.
3. One forward pass; the arg-max is compared with the resized mask. Ignored pixels are not scored.
4. Intersections and unions are summed over all images. The mean IoU divides by all classes: one that is absent from
   ground truth and prediction counts as 0.

Unknown: the algorithm's version of Gluon CV, changes by AWS, and the treatment of pixel values outside the classes. So
this is an estimate of its number, not its number.

Legend: H, W image height and width; S crop_size; C classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from pspnet.evaluation.metrics import Scores


class CentreView:
    """Resized centre crop of an image and its mask that the built-in algorithm scores; crop_size is S."""

    def __init__(self, crop_size: int) -> None:
        self.crop_size = crop_size

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, _rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB and (H, W) uint8 -> (S, S, 3) uint8 and (S, S) uint8; deterministic."""
        side = self.crop_size
        height, width = mask.shape
        if width > height:
            width, height = int(width * side / height), side
        else:
            width, height = side, int(height * side / width)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        resized_mask = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        # Python rounds halves to even, as in the original.
        left, top = round((width - side) / 2), round((height - side) / 2)
        box = (left, top, left + side, top + side)
        return np.asarray(resized.crop(box)), np.asarray(resized_mask.crop(box))


def builtin_scores(counts: np.ndarray) -> Scores:
    """Compute scores of a (C, C) int64 confusion matrix; the mean IoU counts absent classes as 0."""
    scores = Scores.from_counts(counts)
    total = sum(iou for iou in scores.per_class_iou if iou is not None)
    return dataclasses.replace(scores, mIOU=total / len(counts))
