"""Sample images of a report: those with the best, median and worst scores, and their masks."""

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
    """Return names and scores of all images with scored pixels, best first, ties by name. An image's score is the mean
    IoU over the classes in its ground truth or prediction."""
    scores = {name: Scores.from_counts(record.matrix(name)) for name in record.names}
    ranked = [(name, found.mIOU) for name, found in scores.items() if found.pixels]
    return sorted(ranked, key=lambda entry: (-entry[1], entry[0]))


def choose_samples(record: Record, count: int) -> dict[str, list[tuple[str, float]]]:
    """Return up to `count` images for each of GROUPS without duplicates; with few images `best` comes first."""
    ranked = rank_images(record)
    best = ranked[:count]
    worst = ranked[max(count, len(ranked) - count) :]
    middle = ranked[len(best) : len(ranked) - len(worst)]
    first = max(0, (len(middle) - count) // 2)
    return {"best": best, "median": middle[first : first + count], "worst": worst}


def keep_masks(
    folder: Path,
    record: Record,
    chosen: Sequence[Pair],
    palette: np.ndarray,
    predict: Callable[[Pair, np.ndarray], np.ndarray],
    label_map: LabelMap | None,
    ignore_index: int,
) -> None:
    """Write <name>.png of the chosen pairs into the folder; an existing mask with the record's counts is kept.

    Args:
        predict: a pair and its image, (H, W, 3) uint8 RGB -> (H, W) uint8 class ids, as in the evaluation.

    Raises DataError for unreadable files, OSError if a mask cannot be written.
    """
    for pair in chosen:
        path = folder / f"{pair.stem}.png"
        image, target = read_pair(pair, record.num_classes, label_map, ignore_index)
        if not path.is_file() or mask_disagreement(path, target, record) != 0:
            write_palette_png(path, predict(pair, image), palette)


def mask_disagreement(path: Path, target: np.ndarray, record: Record) -> float:
    """Return the distance of a mask file's confusion matrix from the record's: 0 if equal, 1 if disjoint or if the file
    cannot be the mask."""
    expected = record.matrix(path.stem)
    try:
        mask = read_annotation(path)
    except DataError:
        return 1.0
    if mask.shape != target.shape or (mask[target < record.num_classes] >= record.num_classes).any():
        return 1.0
    masks, targets = (torch.from_numpy(np.array(part)).unsqueeze(0) for part in (mask, target))
    found = count_by_image(masks, targets, record.num_classes)[0].numpy()
    return float(np.abs(found - expected).sum() / max(1, found.sum() + expected.sum()))
