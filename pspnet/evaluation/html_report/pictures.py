"""Images inside a page: data URIs, bounded in size, and what a report shows of an image."""

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
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.samples import SAMPLES_NAME, choose_samples, mask_disagreement

LONGEST_SIDE = 640
_WRONG, _IGNORED = (213, 94, 0), (0, 114, 178)
# One image in a batch may round otherwise than several: a few pixels of a kept mask may differ from the scored one.
_OTHER_PIXELS = 0.01


@dataclass(frozen=True)
class Picture:
    """A data URI, with its size in px."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image of a report: its pictures by name, and the classes (ids) that are in its truth or prediction."""

    name: str
    score: float
    pictures: dict[str, Picture]
    classes: list[int]


@dataclass(frozen=True)
class Samples:
    """The images by group (best, median, worst); `note` says what is missing, and how to have it."""

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
    """The pictures of an evaluation's best, median and worst images, from the masks that it kept.

    Args:
        find_pair: the files of an image by its name, None where they are not to be found.
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
                image, truth = read_pair(pair, record.num_classes, label_map, ignore_index)
            except DataError:
                missing.append(name)
                continue
            if mask_disagreement(mask_path, truth, record) > _OTHER_PIXELS:
                other.append(name)
                continue
            groups[group].append(draw_sample(name, score, image, truth, read_annotation(mask_path), palette))
    note = ""
    if missing:
        note = (
            f"{len(missing)} of the images that belong here are not shown, {missing[0]} for example: image, annotation "
            "or kept mask was not found. Give --images and --annotations if the data was moved; evaluate keeps "
            "the masks."
        )
    if other:
        note += (
            f" {len(other)} images are not shown because their kept mask is not the one that was scored, {other[0]} "
            "for example: evaluate again."
        )
    return Samples(groups, note.strip())


def draw_sample(
    name: str, score: float, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: np.ndarray
) -> Sample:
    """Image (H, W, 3) and masks (H, W), uint8 -> its four pictures. What is not scored keeps the ignored colour."""
    ignored = truth == IGNORE_INDEX
    shown = np.where(ignored, np.uint8(IGNORE_INDEX), prediction)
    light = (image.mean(axis=2, keepdims=True) / 3 + 165).astype(np.uint8).repeat(3, axis=2)
    errors = np.where((shown != truth)[..., None], np.array(_WRONG, dtype=np.uint8), light)
    errors = np.where(ignored[..., None], (light // 2 + np.array(_IGNORED) // 2).astype(np.uint8), errors)
    present = np.union1d(np.unique(truth[~ignored]), np.unique(prediction[~ignored]))
    pictures = {
        "image": photo(Image.fromarray(np.ascontiguousarray(image))),
        "truth": mask_picture(truth, palette),
        "prediction": mask_picture(prediction, palette),
        "errors": photo(Image.fromarray(errors)),
    }
    return Sample(name, score, pictures, [int(label) for label in present])


def photo(image: Image.Image) -> Picture:
    """A JPEG data URI of an RGB image, at most LONGEST_SIDE px."""
    image = image.resize(_bounded(image.size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return Picture(_uri(buffer.getvalue(), "jpeg"), *image.size)


def mask_picture(mask: np.ndarray, palette: np.ndarray) -> Picture:
    """A palette PNG data URI of an (H, W) mask, at most LONGEST_SIDE px; nearest neighbour keeps the colours."""
    image = encode_palette_png(mask, palette)
    image = image.resize(_bounded(image.size), Image.Resampling.NEAREST)
    return Picture(png_uri(image), *image.size)


def png_uri(image: Image.Image) -> str:
    """A PNG data URI of an image as it is."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "png")


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, LONGEST_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
