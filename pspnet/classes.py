"""Class names, palettes and label maps. Imports numpy, when an array is made."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.errors import DataError

if TYPE_CHECKING:
    import numpy as np

IGNORE_INDEX = 255
# A mask holds bytes, and IGNORE_INDEX is not a class.
MAX_CLASSES = 254

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
# The scene parsing challenge's 150 classes (objectInfo150.txt), each with its first name.
ADE20K_CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman",
    "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
    "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball",
    "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
    "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
SHAPES_CLASSES = ("background", "disc", "square", "triangle", "ring", "cross", "star")
NAMED_CLASS_SETS = {
    "voc": VOC_CLASSES,
    "camvid": CAMVID_CLASSES,
    "cityscapes": CITYSCAPES_CLASSES,
    "ade20k": ADE20K_CLASSES,
    "shapes": SHAPES_CLASSES,
}

# SegNet's published colours for the eleven CamVid classes, in the order of CAMVID_CLASSES.
_CAMVID_COLOURS = "808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"
# The colours of cityscapesScripts and of the scene parsing challenge (color150), in the order of the class ids.
_CITYSCAPES_COLOURS = (
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 003c64 "
    "005064 0000e6 770b20"
)
_ADE20K_COLOURS = (
    "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 "
    "8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 "
    "ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff "
    "8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff "
    "00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff "
    "ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff "
    "00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 "
    "5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 "
    "0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff "
    "b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"
)
# Hexadecimal RGB, one colour per class.
_COLOURS = {
    CAMVID_CLASSES: _CAMVID_COLOURS,
    CITYSCAPES_CLASSES: _CITYSCAPES_COLOURS,
    ADE20K_CLASSES: _ADE20K_COLOURS,
}


def default_class_names(num_classes: int) -> tuple[str, ...]:
    """Default class names: VOC's for 21 classes, `class_<id>` otherwise."""
    if num_classes == len(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(f"class_{index}" for index in range(num_classes))


def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map, (256, 3) uint8.

    Every third bit of the class id belongs to one channel, and the low bits of the id become the high bits of the
    colour, so that small ids differ strongly. Source: VOCdevkit, VOClabelcolormap.
    """
    import numpy as np

    ids = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for channel in range(3):
        for digit in range(3):
            bit = (ids >> (3 * digit + channel)) & 1
            palette[:, channel] |= (bit << (7 - digit)).astype(np.uint8)
    return palette


def palette_for(class_names: tuple[str, ...]) -> np.ndarray:
    """The (256, 3) uint8 palette for masks of these classes; 255 keeps VOC's near-white."""
    import numpy as np

    palette = voc_palette()
    if class_names in _COLOURS:
        colours = np.frombuffer(bytes.fromhex(_COLOURS[class_names]), dtype=np.uint8).reshape(-1, 3)  # (classes, 3)
        palette[: len(colours)] = colours
    return palette


@dataclass(frozen=True)
class LabelMap:
    """Mapping of pixel values in annotations to class ids used in training.

    `table` is (256,) uint8, pixel value -> class id; `named` is (256,) bool, False for pixel values missing from the
    map, which are ignored.
    """

    table: np.ndarray
    named: np.ndarray

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8 pixel values -> (H, W) uint8 class ids."""
        ids: np.ndarray = self.table[mask]
        return ids

    def pixel_values(self, class_id: int) -> list[int]:
        """The pixel values that become `class_id`."""
        import numpy as np

        return [int(value) for value in np.flatnonzero((self.table == class_id) & self.named)]


def load_label_map(path: Path) -> LabelMap:
    """Read `{"scale": k}` or `{"map": {"<class id>": <pixel value>}}`; DataError names file, entry and allowed values.

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
            f'{path}: a label map has either {{"scale": k}} or {{"map": {{"<class id>": <pixel value>}}}}; '
            f"found {_shorten(content)}."
        )
    if "scale" in content:
        return _scale_map(path, content["scale"])
    return _explicit_map(path, content["map"])


def _scale_map(path: Path, raw: Any) -> LabelMap:
    import numpy as np

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
    import numpy as np

    if not isinstance(entries, dict) or not entries:
        raise DataError(f'{path}: "map" must have at least one class id; found {_shorten(entries)}.')
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    named = np.zeros(256, dtype=bool)
    named[IGNORE_INDEX] = True
    mapped: dict[int, str] = {}
    for key, raw in entries.items():
        class_id, pixel = _byte(path, key, "class id"), _byte(path, raw, "pixel value")
        if pixel in mapped:
            raise DataError(f"{path}: pixel value {pixel} is mapped to two class ids, {mapped[pixel]} and {key}.")
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
