"""Class masks of the Semantic Boundaries Dataset, which extend VOC's 1,464 training images to train_aug's 10,582.

Source: Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011. SBD annotates 11,355 images of VOC
2011, 8,498 in its train.txt and 2,857 in its val.txt; some of them are VOC 2012's validation images.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.classes import IGNORE_INDEX, VOC_CLASSES
from pspnet.data.prepare.voc_source import open_tar
from pspnet.errors import DataError

_EXPECTED = "SegmentationClassAug (PNG files), SBD's benchmark_RELEASE/dataset folder (cls/*.mat) or benchmark.tgz"
_MEMBER = re.compile(r"(?:\A|/)cls/([A-Za-z0-9_-]+)\.mat\Z")


def read_sbd(source: Path, skip: Collection[str]) -> Iterator[tuple[str, Path | np.ndarray]]:
    """Stem and mask of every SBD image whose stem is not in `skip`.

    `source` is a folder of PNG masks (SegmentationClassAug, already merged), the `dataset` folder of benchmark_RELEASE
    or a folder above it, or benchmark.tgz. A mask is the path of a PNG, or the (H, W) uint8 class ids of a .mat file,
    which needs scipy. Raises DataError for other sources.
    """
    if source.is_dir():
        return _read_folder(source, skip)
    if not source.is_file():
        raise DataError(f"{source}: does not exist; expected {_EXPECTED}.")
    if source.suffix.lower() == ".zip":
        raise DataError(f"{source}: is a zip file. Unzip it and give the folder of PNG files.")
    return _read_archive(source, skip)


def _read_folder(source: Path, skip: Collection[str]) -> Iterator[tuple[str, Path | np.ndarray]]:
    for folder in (source, source / "SegmentationClassAug"):
        masks = sorted(folder.glob("*.png"))
        if masks:
            return ((path.stem, path) for path in masks if path.stem not in skip and not path.name.startswith("."))
    for folder in (source, source / "dataset", source / "benchmark_RELEASE" / "dataset"):
        if (folder / "cls").is_dir():
            return _read_mat_files(folder, skip)
    raise DataError(f"{source}: has no masks; expected {_EXPECTED}.")


def _read_mat_files(dataset: Path, skip: Collection[str]) -> Iterator[tuple[str, Path | np.ndarray]]:
    stems = {path.stem for path in (dataset / "cls").glob("*.mat")}
    for split in ("train.txt", "val.txt"):
        if (dataset / split).is_file():
            named = (dataset / split).read_text(encoding="utf-8", errors="replace").split()
            missing = sorted(set(named) - stems)
            if missing:
                raise DataError(
                    f"{dataset}: {len(missing)} of {len(named)} masks named in {split} are missing from cls/: "
                    f"{', '.join(missing[:5])}. Unpack all of benchmark.tgz."
                )
    if not stems:
        raise DataError(f"{dataset / 'cls'}: has no .mat files. Unpack all of benchmark.tgz.")
    for stem in sorted(stems.difference(skip)):
        path = dataset / "cls" / f"{stem}.mat"
        yield stem, _decode(path.read_bytes(), str(path))


def _read_archive(source: Path, skip: Collection[str]) -> Iterator[tuple[str, Path | np.ndarray]]:
    seen = 0
    with open_tar(source) as archive:
        # One pass in stored order: a compressed archive cannot be read backwards.
        for member in archive:
            match = _MEMBER.search(member.name) if member.isreg() else None
            if match is None or (stream := archive.extractfile(member)) is None:
                continue
            seen += 1
            if match.group(1) not in skip:
                yield match.group(1), _decode(stream.read(), f"{source}: {member.name}")
    if not seen:
        raise DataError(f"{source}: has no cls/*.mat files; expected {_EXPECTED}.")


def _decode(content: bytes, title: str) -> np.ndarray:
    """(H, W) uint8 class ids of a .mat file's GTcls.Segmentation."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"{title}: reading SBD's .mat files needs scipy. Install it (pip install scipy), or give the folder "
            "SegmentationClassAug with the same masks as PNG files."
        ) from error
    try:
        loaded: Any = loadmat(io.BytesIO(content), variable_names=["GTcls"])
        mask = np.asarray(loaded["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # scipy raises many exception types for a damaged file
        raise DataError(f"{title}: has no readable GTcls.Segmentation ({error}). Unpack SBD again.") from error
    if mask.ndim != 2 or not np.isin(mask, [*range(len(VOC_CLASSES)), IGNORE_INDEX]).all():
        raise DataError(f"{title}: its mask has shape {mask.shape} or values outside VOC's 0..20. Unpack SBD again.")
    return mask.astype(np.uint8)
