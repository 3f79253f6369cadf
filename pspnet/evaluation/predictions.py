"""Scores mask files against annotations, without a model: what another program predicted, or what was saved before."""

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
    """Mask files (as `image`) with the annotations of the same stem, sorted; files other than PNG are passed over.

    Raises DataError for files without a partner, and where there are none.
    """
    masks = {path.stem: path for path in list_files(predictions, ANNOTATION_SUFFIXES, "predictions")}
    truths = {path.stem: path for path in list_files(annotations, ANNOTATION_SUFFIXES, "evaluation_annotation")}
    for paths, other, what in ((truths, masks, predictions), (masks, truths, annotations)):
        alone = [path for stem, path in paths.items() if stem not in other]
        if alone:
            raise DataError(
                f"{what}: no PNG file of the same stem for {len(alone)} files of {alone[0].parent}: "
                f"{format_names(alone)}. Scores need every annotation's mask, and nothing else: add or remove files."
            )
    if not truths:
        raise DataError(f"{annotations}: no annotations; expected PNG files directly in that folder.")
    return [Pair(masks[stem], truths[stem]) for stem in sorted(truths)]


def score_predictions(
    pairs: list[Pair],
    record: Record,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    progress: bool = False,
    boundaries: bool = False,
) -> None:
    """Add the confusion matrix of every pair to the record, and the counts of its boundaries if they are asked for.

    The label map is for the annotations; the values of the mask files are class ids. Raises DataError for files that
    can't be read, sizes that differ, and class ids that there are not (in a mask: at pixels that are scored).
    """
    classes = record.num_classes
    tally = Tally(classes, ("boundary",) if boundaries else ())
    for pair in tqdm(pairs, unit="mask", disable=not progress, file=sys.stderr):
        mask, truth = read_annotation(pair.image), read_annotation(pair.annotation)
        if mask.shape != truth.shape:
            raise DataError(
                f"{pair.image}: the mask is {mask.shape[1]}x{mask.shape[0]} px but {pair.annotation} is "
                f"{truth.shape[1]}x{truth.shape[0]} px; expected the same size. Predict at the images' own size."
            )
        truth = to_class_ids(truth, pair.annotation, classes, label_map, ignore_index, "validation")
        wrong = np.unique(mask[(mask >= classes) & (truth < classes)])
        if len(wrong):
            raise DataError(
                f"{pair.image}: class ids {wrong.tolist()} at pixels that are scored; expected 0..{classes - 1}. Write "
                "a class id at every pixel, or give the right --num_classes."
            )
        rows = tally.rows(torch.from_numpy(np.array(mask))[None], torch.from_numpy(np.array(truth))[None])
        matrix, details = tally.split(rows[0].numpy())
        record.add(pair.stem, matrix, details=details)
