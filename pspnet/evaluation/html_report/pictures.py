"""Pictures of a report as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pspnet.classes import IGNORE_INDEX, LabelMap
from pspnet.data.channels import Pair
from pspnet.data.dataset import read_pair
from pspnet.data.io.images import encode_palette_png, read_annotation
from pspnet.errors import DataError
from pspnet.evaluation.html_report.samples import SAMPLES_NAME, choose_samples, mask_disagreement
from pspnet.evaluation.per_image import Record

LONGEST_SIDE = 640
_WRONG, _IGNORED = (213, 94, 0), (0, 114, 178)
# Rounding depends on the batch size: a few pixels of a saved mask may differ from the scored one.
_MAX_DISAGREEMENT = 0.01


@dataclass(frozen=True)
class Picture:
    """Data URI of a picture, with its size in px."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image of a report: its pictures by name, and the class ids in its ground truth or prediction."""

    name: str
    score: float
    pictures: dict[str, Picture]
    classes: list[int]


@dataclass(frozen=True)
class Samples:
    """Images by group (best, median, worst); `note` names missing images and the fix."""

    groups: dict[str, list[Sample]]
    note: str = ""


def collect_samples(
    folder: Path,
    protocol: str,
    record: Record,
    find_pair: Callable[[str], Pair | None],
    palette: np.ndarray,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    count: int = 3,
) -> Samples:
    """Draw an evaluation's best, median and worst images from its saved masks.

    Args:
        find_pair: returns the files of an image by its name, None if not found.
        count: images of each group.
    """
    groups: dict[str, list[Sample]] = {}
    missing, other = [], []
    for group, chosen in choose_samples(record, count).items():
        groups[group] = []
        for name, score in chosen:
            pair, mask_path = find_pair(name), folder / SAMPLES_NAME / protocol / f"{name}.png"
            if pair is None or not mask_path.is_file():
                missing.append(name)
                continue
            try:
                image, target = read_pair(pair, record.num_classes, label_map, ignore_index)
            except DataError:
                missing.append(name)
                continue
            if mask_disagreement(mask_path, target, record) > _MAX_DISAGREEMENT:
                other.append(name)
                continue
            groups[group].append(draw_sample(name, score, image, target, read_annotation(mask_path), palette))
    note = ""
    if missing:
        note = (
            f"{len(missing)} images are not shown, {missing[0]} for example: image, annotation or saved mask was not "
            "found. Give --images and --annotations if the data was moved; evaluate saves the masks."
        )
    if other:
        note += (
            f" {len(other)} images are not shown because their saved mask is not the scored one, {other[0]} for "
            "example: evaluate again."
        )
    return Samples(groups, note.strip())


def draw_sample(
    name: str, score: float, image: np.ndarray, target: np.ndarray, prediction: np.ndarray, palette: np.ndarray
) -> Sample:
    """Image (H, W, 3) and masks (H, W), uint8 -> four pictures. Ignored pixels keep the ignored colour."""
    ignored = target == IGNORE_INDEX
    shown = np.where(ignored, np.uint8(IGNORE_INDEX), prediction)
    light = (image.mean(axis=2, keepdims=True) / 3 + 165).astype(np.uint8).repeat(3, axis=2)
    errors = np.where((shown != target)[..., None], np.array(_WRONG, dtype=np.uint8), light)
    errors = np.where(ignored[..., None], (light // 2 + np.array(_IGNORED) // 2).astype(np.uint8), errors)
    present = np.union1d(np.unique(target[~ignored]), np.unique(prediction[~ignored]))
    pictures = {
        "image": photo(Image.fromarray(np.ascontiguousarray(image))),
        "ground_truth": mask_picture(target, palette),
        "prediction": mask_picture(prediction, palette),
        "errors": photo(Image.fromarray(errors)),
    }
    return Sample(name, score, pictures, [int(label) for label in present])


def photo(image: Image.Image) -> Picture:
    """Encode an RGB image as a JPEG data URI of at most LONGEST_SIDE px."""
    image = image.resize(_bounded(image.size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return Picture(_uri(buffer.getvalue(), "jpeg"), *image.size)


def mask_picture(mask: np.ndarray, palette: np.ndarray) -> Picture:
    """Encode an (H, W) mask as a palette PNG data URI of at most LONGEST_SIDE px, with nearest-neighbour scaling."""
    image = encode_palette_png(mask, palette)
    image = image.resize(_bounded(image.size), Image.Resampling.NEAREST)
    return Picture(png_uri(image), *image.size)


def png_uri(image: Image.Image) -> str:
    """Encode an image as a PNG data URI at its own size."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "png")


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, LONGEST_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
