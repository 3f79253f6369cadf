"""Annotated images for the calibration and the scoring of 8-bit graphs.

Legend: H, W image height and width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pspnet.classes import IGNORE_INDEX, LabelMap
from pspnet.data.channels import Pair, find_label_map, load_pairs
from pspnet.data.dataset import read_pair
from pspnet.data.io.images import read_image
from pspnet.errors import DataError
from pspnet.evaluation.metrics import ConfusionMatrix, Scores
from pspnet.exporting.formats import Run
from pspnet.inference.tiling import pad

# Fewer pairs than this are not split into halves.
_ENOUGH_TO_SPLIT = 8

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Calibration:
    """Images that calibrate a graph, and pairs that score it.

    Attributes:
        folder: the data set.
        images: image files for calibration.
        scored: pairs for scoring.
        channel: of the pairs.
        disjoint: whether the two sets have no image in common.
        label_map: of the scored channel.
        ignore_index: class id that is not scored.
    """

    folder: Path
    images: list[Path]
    scored: list[Pair]
    channel: str
    disjoint: bool
    label_map: LabelMap | None = None
    ignore_index: int = IGNORE_INDEX

    @classmethod
    def find(cls, folder: Path, images: int, scored: int, ignore_index: int = IGNORE_INDEX) -> Calibration:
        """Select images from a data set's channels, evenly over their files.

        With both channels, train calibrates and validation scores. With one channel, its images alternate; fewer than 8
        images do both.

        Args:
            images: maximum number of images for calibration.
            scored: maximum number of pairs for scoring.

        Raises DataError if both channels are missing, or one is invalid for training.
        """
        found = [name for name in ("train", "validation") if (folder / name).is_dir()]
        if not found:
            raise DataError(
                f"--calibration: {folder} has no folder train or validation; expected a data set with images and "
                "annotations, as training takes it (validation/ and validation_annotation/, or train/ too)."
            )
        pairs = {name: load_pairs(folder / name, folder / f"{name}_annotation", name) for name in found}
        channel = found[-1]
        if len(found) == 2:
            first, second = pairs["train"], pairs["validation"]
        else:
            first, second = pairs[channel][0::2], pairs[channel][1::2]
        disjoint = len(found) == 2 or len(pairs[channel]) >= _ENOUGH_TO_SPLIT
        if not disjoint:
            first = second = pairs[channel]
        maps = folder / "label_map"
        return cls(
            folder,
            [pair.image for pair in evenly(first, images)],
            evenly(second, scored),
            channel,
            disjoint,
            find_label_map(maps if maps.is_dir() else None, channel),
            ignore_index,
        )

    def batches(self) -> list[np.ndarray]:
        """(1, 3, H, W) uint8 of every calibration image."""
        return [_planes(pad(read_image(path))) for path in self.images]

    def score(self, run: Run, num_classes: int) -> Scores:
        """Score an opened graph on the scoring pairs, each at its own size."""
        confusion = ConfusionMatrix(num_classes)
        for pair in self.scored:
            image, targets = read_pair(pair, num_classes, self.label_map, self.ignore_index, self.channel)
            height, width = targets.shape
            mask, _ = run(_planes(pad(image)))  # (1, H, W)
            confusion.update(torch.from_numpy(mask[0, :height, :width].copy()), torch.from_numpy(targets.copy()))
        return confusion.scores()


def evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` of the items, evenly spaced and in order."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _planes(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))[None]
