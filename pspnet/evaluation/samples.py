"""The images that a report shows: those with the best, the middle and the worst scores, and their masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pspnet.classes import LabelMap
from pspnet.data.channels import Pair
from pspnet.data.dataset import read_pair
from pspnet.data.io.images import read_annotation, write_palette_png
from pspnet.errors import DataError
from pspnet.evaluation.metrics import Scores, count_by_image
from pspnet.evaluation.per_image import Record

SAMPLES_NAME = "samples"
GROUPS = ("best", "median", "worst")


def rank_images(record: Record) -> list[tuple[str, float]]:
    """Names and scores of all images with scored pixels, best first. An image's score is the mean IoU over the classes
    that occur in its truth or prediction; images of equal scores are in the order of their names."""
    scores = {name: Scores.from_counts(record.matrix(name)) for name in record.names}
    ranked = [(name, found.mIOU) for name, found in scores.items() if found.pixels]
    return sorted(ranked, key=lambda entry: (-entry[1], entry[0]))


def choose_samples(record: Record, count: int) -> dict[str, list[tuple[str, float]]]:
    """Up to `count` images for each of GROUPS, no image twice; few images are the best before they are the worst."""
    ranked = rank_images(record)
    best = ranked[:count]
    worst = ranked[max(count, len(ranked) - count) :]
    between = ranked[len(best) : len(ranked) - len(worst)]
    first = max(0, (len(between) - count) // 2)
    return {"best": best, "median": between[first : first + count], "worst": worst}


def keep_masks(
    folder: Path,
    record: Record,
    chosen: Sequence[Pair],
    palette: np.ndarray,
    predict: Callable[[Pair, np.ndarray], np.ndarray],
    label_map: LabelMap | None,
    ignore_index: int,
) -> None:
    """Write <name>.png of the chosen pairs into the folder; a mask that is there and has the record's counts stays.

    Args:
        predict: a pair and its image, (H, W, 3) uint8 RGB -> (H, W) uint8 class ids, as the record was made.

    Raises DataError for files that can't be read, OSError where none can be written.
    """
    for pair in chosen:
        path = folder / f"{pair.stem}.png"
        image, truth = read_pair(pair, record.num_classes, label_map, ignore_index)
        if not path.is_file() or mask_disagreement(path, truth, record) != 0:
            write_palette_png(path, predict(pair, image), palette)


def mask_disagreement(path: Path, truth: np.ndarray, record: Record) -> float:
    """How far a mask file's confusion matrix is from the record's of that name: 0 for equal, 1 for nothing in common
    or a file that can't be the mask at all."""
    expected = record.matrix(path.stem)
    try:
        mask = read_annotation(path)
    except DataError:
        return 1.0
    if mask.shape != truth.shape or (mask[truth < record.num_classes] >= record.num_classes).any():
        return 1.0
    masks, truths = (torch.from_numpy(np.array(part)).unsqueeze(0) for part in (mask, truth))
    found = count_by_image(masks, truths, record.num_classes)[0].numpy()
    return float(np.abs(found - expected).sum() / max(1, found.sum() + expected.sum()))
