"""Class names, palettes and label maps. Needs numpy only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.errors import DataError

IGNORE_INDEX = 255

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
SHAPES_CLASSES = ("background", "disc", "square", "triangle", "ring", "cross", "star")
NAMED_CLASS_SETS = {"voc": VOC_CLASSES, "camvid": CAMVID_CLASSES, "shapes": SHAPES_CLASSES}

# SegNet's published colours for the eleven CamVid classes, in the order of CAMVID_CLASSES.
_CAMVID_COLOURS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


def default_class_names(num_classes: int) -> tuple[str, ...]:
    """Names for a data set that gave none: VOC's for 21 classes, `class_<id>` otherwise."""
    if num_classes == len(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(f"class_{index}" for index in range(num_classes))


def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map, (256, 3) uint8.

    Every third bit of the class id belongs to one channel, and the low bits of the id fill the high bits of the
    colour, so that small ids look far apart. Source: VOCdevkit, VOClabelcolormap.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for channel in range(3):
        for place in range(3):
            bit = (ids >> (3 * place + channel)) & 1
            palette[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return palette


def palette_for(class_names: tuple[str, ...]) -> np.ndarray:
    """The (256, 3) uint8 palette that masks of these classes are written with; 255 keeps VOC's near-white."""
    palette = voc_palette()
    if class_names == CAMVID_CLASSES:
        palette[: len(_CAMVID_COLOURS)] = _CAMVID_COLOURS
    return palette


@dataclass(frozen=True)
class LabelMap:
    """From the pixel value in an annotation to the class id used in training.

    `table` is (256,) uint8, pixel value -> class id; `named` is (256,) bool, False where the map says nothing about a
    pixel value, which then is ignored.
    """

    table: np.ndarray
    named: np.ndarray

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8 pixel values -> (H, W) uint8 class ids."""
        ids: np.ndarray = self.table[mask]
        return ids

    def pixel_values(self, class_id: int) -> list[int]:
        """The pixel values that become `class_id`."""
        return [int(value) for value in np.flatnonzero((self.table == class_id) & self.named)]


def load_label_map(path: Path) -> LabelMap:
    """Read `{"scale": k}` or `{"map": {"<class id>": <pixel value>}}`; DataError names file, entry and what is allowed.

    The direction of `map` is the built-in SageMaker algorithm's: the key is the class id used in training, the value
    is the pixel value in the annotation.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the label map cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise DataError(f"{path}: the label map is not valid JSON ({error}).") from error
    if not isinstance(content, dict) or len(content) != 1 or next(iter(content)) not in ("scale", "map"):
        raise DataError(
            f'{path}: a label map holds either {{"scale": k}} or {{"map": {{"<class id>": <pixel value>}}}}; '
            f"found {_shorten(content)}."
        )
    if "scale" in content:
        return _scale_map(path, content["scale"])
    return _explicit_map(path, content["map"])


def _scale_map(path: Path, raw: Any) -> LabelMap:
    try:
        scale = float(raw)
    except (TypeError, ValueError):
        scale = math.nan
    if isinstance(raw, bool) or not math.isfinite(scale) or not 1.0 <= scale <= 255.0:
        raise DataError(f'{path}: "scale" must be a number from 1 to 255; found {raw!r}.')
    table = np.floor(np.arange(256) / scale).astype(np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    return LabelMap(table, np.ones(256, dtype=bool))


def _explicit_map(path: Path, entries: Any) -> LabelMap:
    if not isinstance(entries, dict) or not entries:
        raise DataError(f'{path}: "map" must name at least one class id; found {_shorten(entries)}.')
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    named = np.zeros(256, dtype=bool)
    named[IGNORE_INDEX] = True
    mapped: dict[int, str] = {}
    for key, raw in entries.items():
        class_id, pixel = _byte(path, key, "class id"), _byte(path, raw, "pixel value")
        if pixel in mapped:
            raise DataError(f"{path}: pixel value {pixel} is given to two class ids, {mapped[pixel]} and {key}.")
        mapped[pixel] = key
        table[pixel], named[pixel] = class_id, True
    return LabelMap(table, named)


def _byte(path: Path, raw: Any, what: str) -> int:
    try:
        value = int(str(raw))
    except ValueError:
        value = -1
    if isinstance(raw, bool) or not 0 <= value <= 255:
        raise DataError(f"{path}: a {what} must be a whole number from 0 to 255; found {raw!r}.")
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
