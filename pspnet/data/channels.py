"""Channels: folders of images and annotations, paired by stem. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pspnet.classes import IGNORE_INDEX, LabelMap, load_label_map
from pspnet.data.io.images import ANNOTATION_SUFFIXES, IMAGE_SUFFIXES
from pspnet.errors import DataError

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """One image file and the annotation of the same stem."""

    image: Path
    annotation: Path

    @property
    def stem(self) -> str:
        return self.image.stem


@dataclass(frozen=True)
class Pairing:
    """Result of pairing two folders by stem: the pairs, sorted by stem, and the files without a partner."""

    pairs: list[Pair]
    images_without_annotation: list[Path] = field(default_factory=list)
    annotations_without_image: list[Path] = field(default_factory=list)
    ambiguous: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Channel:
    """One split: its folders and its optional label map."""

    name: str
    images: Path
    annotations: Path
    label_map: LabelMap | None = None


def list_files(folder: Path, suffixes: tuple[str, ...], channel: str) -> list[Path]:
    """Files with these suffixes directly in `folder`, sorted by name; DataError if it is not a folder."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"channel {channel}: {folder} {found}; expected a folder of {', '.join(suffixes)} files.")
    # Hidden files are created by operating systems ("._0001.jpg") and are never data. scandir knows the file types;
    # a stat per file would cost a request each on a network file system, or in SageMaker's FastFile mode.
    with os.scandir(folder) as entries:
        return sorted(
            folder / entry.name
            for entry in entries
            if Path(entry.name).suffix.lower() in suffixes and not entry.name.startswith(".") and entry.is_file()
        )


def pair_files(images_dir: Path, annotations_dir: Path, channel: str = "train") -> Pairing:
    """Pair images (JPEG, PNG) with annotations (PNG) of the same stem.

    Files that share their stem with another file of the folder (`a.jpg` and `a.png`) are `ambiguous`.
    """
    images = list_files(images_dir, IMAGE_SUFFIXES, channel)
    annotations = list_files(annotations_dir, ANNOTATION_SUFFIXES, f"{channel}_annotation")
    counts = Counter(path.stem for path in images)
    annotation_counts = Counter(path.stem for path in annotations)
    ambiguous = [path for path in images if counts[path.stem] > 1]
    ambiguous += [path for path in annotations if annotation_counts[path.stem] > 1]
    annotation_of = {path.stem: path for path in annotations}
    image_stems = set(counts)
    return Pairing(
        pairs=[
            Pair(path, annotation_of[path.stem])
            for path in images
            if path.stem in annotation_of and counts[path.stem] == 1 and annotation_counts[path.stem] == 1
        ],
        images_without_annotation=[path for path in images if path.stem not in annotation_of],
        annotations_without_image=[path for path in annotations if path.stem not in image_stems],
        ambiguous=ambiguous,
    )


def load_pairs(images_dir: Path, annotations_dir: Path, channel: str = "train") -> list[Pair]:
    """Pairs of a channel, sorted by stem; DataError for files without a partner and for an empty channel."""
    pairing = pair_files(images_dir, annotations_dir, channel)
    problems = [
        f"channel {channel}: {len(paths)} {what}: {format_names(paths)}. {fix}"
        for paths, what, fix in (
            (
                pairing.images_without_annotation,
                f"images in {images_dir} have no annotation of the same stem in {annotations_dir}",
                "Add the annotations or remove the images.",
            ),
            (
                pairing.annotations_without_image,
                f"annotations in {annotations_dir} have no image of the same stem in {images_dir}",
                "Add the images or remove the annotations.",
            ),
            (pairing.ambiguous, "files share their stem with another file of the folder", "Keep one of each."),
        )
        if paths
    ]
    if problems:
        raise DataError("\n".join(problems))
    if not pairing.pairs:
        raise DataError(
            f"channel {channel}: no images in {images_dir}; expected files ending in {', '.join(IMAGE_SUFFIXES)} "
            "directly in that folder."
        )
    return pairing.pairs


def format_names(paths: list[Path]) -> str:
    """The first few file names, and the number of the others."""
    shown = ", ".join(path.name for path in paths[:_NAMES_SHOWN])
    return shown if len(paths) <= _NAMES_SHOWN else f"{shown} and {len(paths) - _NAMES_SHOWN} more"


def find_label_map(folder: Path | None, channel: str) -> LabelMap | None:
    """`<channel>_label_map.json` of the label_map channel, or None if it has no such file."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise DataError(f"channel label_map: {folder} is not a folder; expected one with {channel}_label_map.json.")
    path = folder / f"{channel}_label_map.json"
    if path.is_file():
        return load_label_map(path)
    others = sorted(other.name for other in folder.glob("*.json"))
    known = {"train_label_map.json", "validation_label_map.json"}
    if not known.intersection(others):
        raise DataError(
            f"channel label_map: {folder} contains {', '.join(others) or 'no .json file'}; expected "
            "train_label_map.json and/or validation_label_map.json."
        )
    return None


def label_fix(values: Iterable[int], label_map: LabelMap | None, channel: str) -> str:
    """The fix for class ids that the model does not have."""
    if label_map is None:
        return (
            "If the ids are right, raise --num_classes; if the pixel values mean other ids, add a label map "
            f'(label_map/{channel}_label_map.json: {{"map": {{"<class id>": <pixel value>}}}}).'
        )
    pixels = sorted({pixel for value in values for pixel in label_map.pixel_values(value)})
    return f"They come from pixel values {pixels} through the label map: fix the map, or raise --num_classes."


def label_problem(values: list[int], num_classes: int, label_map: LabelMap | None, path: Path, channel: str) -> str:
    """Error message for an annotation with class ids that the model does not have."""
    return (
        f"{path}: class ids {values} are outside 0..{num_classes - 1} and are not {IGNORE_INDEX} (ignored). "
        f"{label_fix(values, label_map, channel)} `pspnet doctor` lists every such file."
    )
