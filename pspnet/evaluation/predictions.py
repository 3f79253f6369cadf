"""Scores of mask files against annotations, without a model, for saved masks or those of another program."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pspnet.classes import IGNORE_INDEX, LabelMap
from pspnet.data.channels import Pair, format_names, list_files
from pspnet.data.dataset import to_class_ids
from pspnet.data.io.images import ANNOTATION_SUFFIXES, read_annotation
from pspnet.errors import DataError
from pspnet.evaluation.image_counts import Tally
from pspnet.evaluation.per_image import Record


def pair_predictions(predictions: Path, annotations: Path) -> list[Pair]:
    """Pair mask files (as `image`) with the annotations of the same stem, sorted; other files than PNG are ignored.

    Raises DataError for unpaired files and for empty folders.
    """
    masks = {path.stem: path for path in list_files(predictions, ANNOTATION_SUFFIXES, "predictions")}
    targets = {path.stem: path for path in list_files(annotations, ANNOTATION_SUFFIXES, "evaluation_annotation")}
    for paths, other, folder in ((targets, masks, predictions), (masks, targets, annotations)):
        alone = [path for stem, path in paths.items() if stem not in other]
        if alone:
            raise DataError(
                f"{folder}: no PNG file of the same stem for {len(alone)} files of {alone[0].parent}: "
                f"{format_names(alone)}. Scores need exactly one mask per annotation: add or remove files."
            )
    if not targets:
        raise DataError(f"{annotations}: no annotations; expected PNG files directly in that folder.")
    return [Pair(masks[stem], targets[stem]) for stem in sorted(targets)]


def score_predictions(
    pairs: list[Pair],
    record: Record,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    progress: bool = False,
    boundaries: bool = False,
) -> None:
    """Add the confusion matrix of every pair to the record, and the counts of its boundaries if requested.

    The label map applies to the annotations; the values of the mask files are class ids. Raises DataError for
    unreadable files, different sizes, and unknown class ids (in a mask: at scored pixels).
    """
    classes = record.num_classes
    tally = Tally(classes, ("boundary",) if boundaries else ())
    for pair in tqdm(pairs, unit="mask", disable=not progress, file=sys.stderr):
        mask, target = read_annotation(pair.image), read_annotation(pair.annotation)
        if mask.shape != target.shape:
            raise DataError(
                f"{pair.image}: the mask is {mask.shape[1]}x{mask.shape[0]} px but {pair.annotation} is "
                f"{target.shape[1]}x{target.shape[0]} px; expected the same size. Predict at the images' own size."
            )
        target = to_class_ids(target, pair.annotation, classes, label_map, ignore_index, "validation")
        wrong = np.unique(mask[(mask >= classes) & (target < classes)])
        if len(wrong):
            raise DataError(
                f"{pair.image}: class ids {wrong.tolist()} at scored pixels; expected 0..{classes - 1}. Write "
                "a class id at every pixel, or give the right --num_classes."
            )
        rows = tally.rows(torch.from_numpy(np.array(mask))[None], torch.from_numpy(np.array(target))[None])
        matrix, details = tally.split(rows[0].numpy())
        record.add(pair.stem, matrix, details=details)
