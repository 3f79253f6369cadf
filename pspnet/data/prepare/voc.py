"""Conversion of PASCAL VOC 2012 to the channels train and validation with their annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pspnet.classes import voc_palette
from pspnet.data.io.images import write_palette_png
from pspnet.data.prepare.sbd import read_sbd
from pspnet.data.prepare.voc_source import VocSource, annotation_name, image_name, link_or_copy, open_voc
from pspnet.errors import DataError
from pspnet.system.atomic_folders import is_free, new_folder
from pspnet.system.download import download as download_file

VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
VOC_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
TRAIN_AUG_SIZE = 10_582
FULL_SIZES = (1464, 1449)

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class VocSummary:
    """Summary of the written channels: image counts, number of SBD masks, and warnings."""

    output: Path
    train: int
    validation: int
    from_sbd: int
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sbd = f" ({self.from_sbd:,} of them with SBD's masks)" if self.from_sbd else ""
        lines = [
            f"{self.output}: {self.train:,} training images{sbd}, {self.validation:,} validation images, 21 classes.",
            *(f"warning: {warning}" for warning in self.warnings),
            f"Check it: pspnet doctor {self.output} --num_classes 21",
            f"Train: python train.py --config configs/{'voc2012_aug' if self.from_sbd else 'voc2012'}.yaml "
            f"--data {self.output}",
        ]
        return "\n".join(lines)


def prepare_voc(
    source: Path | None,
    output: Path,
    download: bool = False,
    train_aug: Path | None = None,
    link: bool = True,
    url: str = VOC_URL,
    progress: bool = True,
) -> VocSummary:
    """Write VOC 2012's segmentation images and masks as channels into `output`, atomically.

    `source` is a VOCdevkit folder (or its parent, or VOC2012 itself) or the official tar; with `download` it is the
    tar's folder or file name (default: `output`'s parent), downloaded from `url` if missing. `train_aug` is the path of
    SBD's masks (see `read_sbd`): training then uses (VOC train + all of SBD) - VOC val, with VOC's mask if both have
    one. `link` uses hard links if the file system supports them. Raises DataError with the fix.
    """
    if not is_free(output):
        raise DataError(f"{output}: exists and is not empty. Choose another folder, or remove this one.")
    if download:
        source = _fetch(source, output, url, progress)
    elif source is None:
        raise DataError("VOC 2012: no source. Give a VOCdevkit folder or the tar with --source, or add --download.")
    with open_voc(source, link) as voc:
        train, validation = voc.stems("train"), voc.stems("val")
        both = sorted(set(train) & set(validation))
        if both:
            raise DataError(f"{voc.title}: {len(both)} stems are in both train.txt and val.txt: {_some(both)}.")
        _check_complete(voc, [*train, *validation], masks=True)
        with new_folder(output) as folder:
            for split in ("train", "validation"):
                (folder / split).mkdir()
                (folder / f"{split}_annotation").mkdir()
            extra: list[str] = []
            if train_aug is not None:
                extra = _write_sbd(train_aug, {*train, *validation}, folder / "train_annotation", link, progress)
                _check_complete(voc, extra, masks=False)
            _copy_all(voc, _destinations(folder, train, validation, extra), progress)
    warnings = _warnings(len(train), len(validation), len(extra), train_aug)
    return VocSummary(output, len(train) + len(extra), len(validation), len(extra), warnings)


def _fetch(source: Path | None, output: Path, url: str, progress: bool) -> Path:
    """Download the tar; `source` is its folder or file name."""
    name = VOC_URL.rsplit("/", 1)[1]
    target = output.absolute().parent / name if source is None else source
    if target.is_dir():
        target = target / name
    return download_file(url, target, VOC_MD5, progress)


def _check_complete(voc: VocSource, stems: list[str], masks: bool) -> None:
    missing = [image_name(stem) for stem in stems if not voc.has(image_name(stem))]
    if masks:
        missing += [annotation_name(stem) for stem in stems if not voc.has(annotation_name(stem))]
    if missing:
        raise DataError(
            f"{voc.title}: {len(missing):,} files for the {len(stems):,} listed images are missing: "
            f"{_some(missing)}. {voc.fix}"
        )


def _write_sbd(source: Path, skip: set[str], annotations: Path, link: bool, progress: bool) -> list[str]:
    """Write the mask of every SBD image outside `skip`; returns their stems."""
    stems: list[str] = []
    for stem, mask in tqdm(read_sbd(source, skip), desc="SBD masks", unit="", disable=None if progress else True):
        target = annotations / f"{stem}.png"
        if isinstance(mask, Path):
            link_or_copy(mask, target, link)
        else:
            write_palette_png(target, mask, voc_palette())
        stems.append(stem)
    return stems


def _destinations(folder: Path, train: list[str], validation: list[str], extra: list[str]) -> dict[str, Path]:
    """Name inside VOC2012 -> file to write."""
    destinations: dict[str, Path] = {}
    for split, stems in (("train", train), ("validation", validation)):
        for stem in stems:
            destinations[image_name(stem)] = folder / split / f"{stem}.jpg"
            destinations[annotation_name(stem)] = folder / f"{split}_annotation" / f"{stem}.png"
    destinations.update({image_name(stem): folder / "train" / f"{stem}.jpg" for stem in extra})
    return destinations


def _copy_all(voc: VocSource, destinations: dict[str, Path], progress: bool) -> None:
    names = voc.in_stored_order(destinations)
    for name in tqdm(names, desc="VOC 2012", unit=" files", disable=None if progress else True):
        voc.copy_to(name, destinations[name])


def _warnings(train: int, validation: int, extra: int, train_aug: Path | None) -> list[str]:
    found = []
    if (train, validation) != FULL_SIZES:
        found.append(
            f"VOC's lists name {train:,} training and {validation:,} validation images; the full set has "
            f"{FULL_SIZES[0]:,} and {FULL_SIZES[1]:,}."
        )
    if train_aug is not None and train + extra != TRAIN_AUG_SIZE:
        found.append(
            f"{train_aug} gives {train + extra:,} training images; train_aug has {TRAIN_AUG_SIZE:,}, so scores are "
            "not comparable with published ones."
        )
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN:,} more"
