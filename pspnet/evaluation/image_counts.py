"""Per-image counts as one int64 row, so that rows of several processes can be summed.

Legend: N images, C classes, H, W image height and width, B bins of confidence.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch

from pspnet.evaluation.boundary import count_boundary
from pspnet.evaluation.calibration import BINS, count_confidence
from pspnet.evaluation.metrics import count_by_image

DETAILS = ("confidence", "boundary")


class Tally:
    """Layout of an image's row of counts: the confusion matrix, then the details.

    Args:
        num_classes: C.
        details: subset of DETAILS that is counted in addition to the confusion matrix.
    """

    def __init__(self, num_classes: int, details: tuple[str, ...] = ()) -> None:
        self.num_classes = num_classes
        shapes = {"confidence": (3, BINS), "boundary": (num_classes, 3)}
        self.shapes = {
            "matrix": (num_classes, num_classes),
            **{name: shapes[name] for name in DETAILS if name in details},
        }
        self.length = sum(rows * columns for rows, columns in self.shapes.values())

    def rows(
        self, masks: torch.Tensor, targets: torch.Tensor, confidences: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """(N, H, W) masks, targets and confidences (required if they are counted) -> (N, length) int64."""
        images = len(targets)
        parts = [count_by_image(masks, targets, self.num_classes)]
        if "confidence" in self.shapes:
            assert confidences is not None
            parts.append(count_confidence(confidences, masks, targets, self.num_classes))
        if "boundary" in self.shapes:
            pairs = zip(masks.to(torch.uint8).cpu().numpy(), targets.to(torch.uint8).cpu().numpy())
            counts = np.stack([count_boundary(mask, target, self.num_classes) for mask, target in pairs])
            parts.append(torch.from_numpy(counts).to(targets.device))
        return torch.cat([part.reshape(images, -1) for part in parts], dim=1)

    def split(self, row: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(length,) -> the (C, C) confusion matrix, and the details by name."""
        parts, start = {}, 0
        for name, (height, width) in self.shapes.items():
            parts[name] = row[start : start + height * width].reshape(height, width)
            start += height * width
        return parts.pop("matrix"), parts
