"""Full examination of a data set before training: every file is read, every problem is counted and listed.

Pictures are compared by a hash of their decoded pixels. This finds renamed copies and a PNG made from a JPEG as well as
byte-identical files; a recompressed JPEG has different pixels and is not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pspnet.classes import IGNORE_INDEX, default_class_names
from pspnet.data.channels import Channel, Pairing, pair_files
from pspnet.data.doctor.checks import ScannedChannel, check_files, check_labels, check_shared_images
from pspnet.data.doctor.findings import (
    ERROR,
    ChannelSummary,
    Problem,
    Report,
    format_report,
    keep_examples,
    median_frequency_weights,
)
from pspnet.data.doctor.scan import scan_pairs
from pspnet.errors import DataError

__all__ = ["Problem", "Report", "examine", "format_report"]


def examine(
    channels: Sequence[Channel],
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = True,
    ignore_index: int = IGNORE_INDEX,
) -> Report:
    """Read every image and annotation of the channels and report all problems.

    `num_classes` defaults to the length of `class_names`, or else to the greatest class id found plus one. `workers`
    processes read the files; their number does not affect the report. Raises DataError only for conflicting arguments.
    """
    if class_names is not None and num_classes is not None and len(class_names) != num_classes:
        raise DataError(
            f"doctor: {len(class_names)} class names for num_classes {num_classes}; expected as many names as classes."
        )
    problems: list[Problem] = []
    pairings: list[Pairing] = []
    for channel in channels:
        pairing, found = _pair(channel)
        pairings.append(pairing)
        problems += found
    facts = scan_pairs([pair for pairing in pairings for pair in pairing.pairs], workers, progress)
    scanned, start = [], 0
    for channel, pairing in zip(channels, pairings):
        stop = start + len(pairing.pairs)
        scanned.append(ScannedChannel(channel, facts[start:stop], ignore_index))
        start = stop

    given = len(class_names) if class_names is not None else num_classes
    count = _greatest_id(scanned) + 1 if given is None else given
    names = list(class_names or default_class_names(count))
    for channel_facts in scanned:
        problems += check_files(channel_facts)
        problems += check_labels(channel_facts, count, names)
    problems += check_shared_images(scanned)
    return Report(
        num_classes=count,
        suggested=given is None,
        class_names=names,
        channels=[_summary(channel_facts, count) for channel_facts in scanned],
        problems=problems,
        class_weights=median_frequency_weights(_labelled_pixels(scanned[:1], count)),
    )


def _pair(channel: Channel) -> tuple[Pairing, list[Problem]]:
    """The channel's pairs, and the problems of files without exactly one partner."""
    try:
        pairing = pair_files(channel.images, channel.annotations, channel.name)
    except DataError as error:
        fix = "Create the folder, or give another one."
        return Pairing([]), [Problem("missing_folder", ERROR, channel.name, 1, str(error), fix)]
    kinds = (
        (
            "image_without_annotation",
            pairing.images_without_annotation,
            f"images in {channel.images} without an annotation of the same stem in {channel.annotations}",
            "Add the annotations or remove the images.",
        ),
        (
            "annotation_without_image",
            pairing.annotations_without_image,
            f"annotations in {channel.annotations} without an image of the same stem in {channel.images}",
            "Add the images or remove the annotations.",
        ),
        (
            "ambiguous_stem",
            pairing.ambiguous,
            "files that share their stem with another file of their folder and were not examined",
            "Keep one of each.",
        ),
    )
    problems = []
    for kind, paths, what, fix in kinds:
        if paths:
            examples = keep_examples([path.name for path in paths])
            message = f"{what}: {len(paths):,}"
            problems.append(Problem(kind, ERROR, channel.name, len(paths), message, fix, examples))
    if not pairing.pairs and not problems:
        message = f"{channel.images} has no images"
        fix = "Put JPEG or PNG files directly into that folder."
        problems.append(Problem("empty_channel", ERROR, channel.name, 0, message, fix))
    return pairing, problems


def _greatest_id(scanned: Sequence[ScannedChannel]) -> int:
    """The greatest class id found, at least 1: a model has at least two classes."""
    ids = [value for channel in scanned for classes in channel.class_pixels for value in classes]
    return max([1, *(value for value in ids if value != IGNORE_INDEX)])


def _labelled_pixels(scanned: Sequence[ScannedChannel], num_classes: int) -> np.ndarray:
    """(N, C) pixels per class in every readable annotation."""
    rows = [
        [classes.get(class_id, 0) for class_id in range(num_classes)]
        for channel in scanned
        for classes in channel.class_pixels
        if classes
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)


def _summary(scanned: ScannedChannel, num_classes: int) -> ChannelSummary:
    labelled = _labelled_pixels([scanned], num_classes)
    sizes = sorted((f.image_size for f in scanned.facts if f.image_size), key=lambda size: (size[0] * size[1], size))
    return ChannelSummary(
        name=scanned.channel.name,
        images=len(scanned.facts),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        class_pixels=[int(value) for value in labelled.sum(axis=0)],
        class_images=[int(value) for value in (labelled > 0).sum(axis=0)],
        ignored_pixels=sum(classes.get(IGNORE_INDEX, 0) for classes in scanned.class_pixels),
    )
