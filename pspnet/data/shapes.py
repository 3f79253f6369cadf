"""Built-in synthetic set: seeded, VOC-like scenes of six shapes, as JPEG and palette PNG files.

Every class has a hue family, but hues vary, some objects have the hue of another class, and backgrounds use muted forms
of all hues, so colour alone does not determine the class. About half of the pixels are background, so a constant
prediction scores below 0.10 mIoU. Imports only numpy and Pillow.

Legend: H, W height and width of the picture in pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pspnet.classes import IGNORE_INDEX, SHAPES_CLASSES, palette_for
from pspnet.data.io.images import encode_palette_png
from pspnet.errors import DataError
from pspnet.models.constants import MIN_SIZE
from pspnet.system.atomic_folders import is_free, new_folder

Floats = NDArray[np.float64]

MANIFEST_NAME = "shapes.json"
SPLITS = ("train", "validation")

# Increase it whenever the pictures change, so that an older set is not reused.
_FORMAT = 2
_JPEG_QUALITY = 92

_HUE_FAMILIES = {"disc": 0.0, "square": 60.0, "triangle": 120.0, "ring": 180.0, "cross": 240.0, "star": 300.0}
_HUE_SPREAD = 14.0
_FOREIGN_HUE_PROBABILITY = 0.1
_OBJECTS = (5, 9)
_OBJECT_HEIGHT = (0.35, 0.7)
_MIN_VISIBLE_FRACTION = 0.4


def write_shapes(
    output: Path, train: int = 200, validation: int = 40, size: tuple[int, int] = (128, 96), seed: int = 0
) -> None:
    """Write the channels train, validation and their annotations as folders in `output`; `size` is (width, height).

    The same arguments give the same bytes (with the same library versions), and picture i of a split depends only on
    `seed`, the split and i. The folder is created atomically; an existing folder with the same set is reused. Raises
    DataError for other existing content and for invalid sizes and counts.
    """
    width, height = size
    if train < 1 or validation < 1:
        raise DataError(f"shapes: found train={train}, validation={validation}; each split needs at least one picture.")
    if min(width, height) < MIN_SIZE:
        raise DataError(f"shapes: found size {width} x {height}; both sides must be at least {MIN_SIZE} pixels.")
    if seed < 0:
        raise DataError(f"shapes: found seed {seed}; expected 0 or more.")
    counts = {"train": train, "validation": validation}
    manifest = {"format": _FORMAT, "seed": seed, "width": width, "height": height, **counts}
    if not is_free(output):
        _check_reusable(output, manifest)
        return
    try:
        with new_folder(output) as folder:
            for split, count in counts.items():
                _write_split(folder, split, count, size, seed)
            (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except FileExistsError:
        # Another process wrote it first, as the workers of one torchrun do.
        _check_reusable(output, manifest)


def _check_reusable(output: Path, manifest: dict[str, int]) -> None:
    """DataError unless `output` holds the complete set that `manifest` describes."""
    path = output / MANIFEST_NAME
    fix = "Choose another folder, or remove this one."
    if not path.is_file():
        raise DataError(f"{output}: exists and is not a synthetic set (no {MANIFEST_NAME}). {fix}")
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {fix}") from error
    if found != manifest:
        raise DataError(f"{output}: contains the synthetic set for {found}; requested was {manifest}. {fix}")
    for split in SPLITS:
        for folder, suffix in ((split, ".jpg"), (f"{split}_annotation", ".png")):
            present = len(list((output / folder).glob(f"{split}_*{suffix}")))
            if present != manifest[split]:
                raise DataError(f"{output / folder}: contains {present} of {manifest[split]} files. {fix}")


def _write_split(folder: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    images, annotations = folder / split, folder / f"{split}_annotation"
    images.mkdir()
    annotations.mkdir()
    palette = palette_for(SHAPES_CLASSES)
    for index in range(count):
        image, mask = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), size)
        stem = f"{split}_{index:05d}"
        Image.fromarray(image).save(images / f"{stem}.jpg", quality=_JPEG_QUALITY, subsampling=0)
        encode_palette_png(mask, palette).save(annotations / f"{stem}.png", optimize=True)


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture of `size` (width, height): (H, W, 3) uint8 RGB and its (H, W) uint8 class ids, 255 at the borders."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    canvas = _background(rng, rows, columns)  # (H, W, 3), 0..1
    classes = np.zeros((height, width), dtype=np.uint8)
    instances = np.zeros((height, width), dtype=np.int64)
    drawn_pixels: list[int] = []
    for _ in range(int(rng.integers(*_OBJECTS, endpoint=True))):
        class_id, inside, colours = _object(rng, rows, columns)
        covered = inside >= 0.5
        after = np.where(covered, len(drawn_pixels) + 1, instances)
        visible = np.bincount(after.ravel(), minlength=len(drawn_pixels) + 2)[1:]
        # Covered objects must stay recognisable, or their labels would be noise.
        recognisable = visible[:-1] >= _MIN_VISIBLE_FRACTION * np.array(drawn_pixels)
        if covered.any() and recognisable.all():
            canvas += inside[..., None] * (colours - canvas)
            classes[covered], instances = class_id, after
            drawn_pixels.append(int(covered.sum()))
    image = _photograph(rng, canvas, rows, columns)
    classes[_borders(instances)] = IGNORE_INDEX
    return image, classes


def _background(rng: np.random.Generator, rows: Floats, columns: Floats) -> Floats:
    """(H, W, 3) two muted colours mixed by a pattern, under a finer second one."""
    height = rows.shape[0]
    first, second = (_rgb(rng.uniform(0, 360), rng.uniform(0.0, 0.3), rng.uniform(0.25, 0.85)) for _ in range(2))
    y, x = rows / height - 0.5, columns / height - 0.5
    mix = _pattern(rng, x, y)[..., None]
    fine = _pattern(rng, 2.5 * x, 2.5 * y)[..., None] - 0.5
    return np.clip(first + mix * (second - first) + rng.uniform(0.0, 0.25) * fine, 0, 1)


def _object(rng: np.random.Generator, rows: Floats, columns: Floats) -> tuple[int, Floats, Floats]:
    """A random object: its class id, (H, W) coverage 0..1 of every pixel, and (H, W, 3) colours 0..1."""
    height, width = rows.shape
    class_id = int(rng.integers(1, len(SHAPES_CLASSES)))
    name = SHAPES_CLASSES[class_id]
    radius = rng.uniform(*_OBJECT_HEIGHT) * height / 2
    centre_x, centre_y = rng.uniform(0.02, 0.98) * width, rng.uniform(0.02, 0.98) * height
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
    x, y = (columns - centre_x) / radius, (rows - centre_y) / radius
    u = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    v = (np.cos(angle) * y - np.sin(angle) * x) / stretch
    inside = np.clip(0.5 - radius * _outline(name, u, v), 0, 1)

    foreign = rng.random() < _FOREIGN_HUE_PROBABILITY
    hue = rng.uniform(0, 360) if foreign else rng.normal(_HUE_FAMILIES[name], _HUE_SPREAD)
    saturation, value = rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0)
    first = _rgb(hue, saturation, value)
    second = _rgb(hue + rng.normal(0, _HUE_SPREAD), saturation * rng.uniform(0.6, 1), value * rng.uniform(0.5, 1))
    colours = first + _pattern(rng, u / 2, v / 2)[..., None] * (second - first)
    shade = 1 - rng.uniform(0, 0.25) * (x + y)[..., None]  # lit from the upper left
    return class_id, inside, np.clip(colours * shade, 0, 1)


def _outline(name: str, u: Floats, v: Floats) -> Floats:
    """(H, W) signed distance from the outline of a shape of radius about 1; negative inside."""
    r = np.hypot(u, v)
    if name == "disc":
        return r - 0.95
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.85
    if name == "triangle":
        return np.asarray(np.max(_half_planes(u, v, 3), axis=0) - 0.6)
    if name == "ring":
        return np.abs(r - 0.75) - 0.27
    if name == "cross":
        across = np.maximum(np.abs(u) - 1.05, np.abs(v) - 0.36)
        return np.minimum(across, np.maximum(np.abs(v) - 1.05, np.abs(u) - 0.36))
    # A pentagram is the area inside at least four of its five lines: the second largest distance decides.
    return np.asarray(np.sort(_half_planes(u, v, 5), axis=0)[-2] - 0.42)


def _half_planes(u: Floats, v: Floats, count: int) -> Floats:
    """(count, H, W) signed distances from lines through the origin with evenly spaced normals."""
    angles = 2 * np.pi * np.arange(count)[:, None, None] / count
    return np.cos(angles) * u + np.sin(angles) * v


def _pattern(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """(H, W) values 0..1 of a gradient, stripes, dots or smooth noise; x and y are about -0.5..0.5."""
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    frequency, phase = 2 * np.pi * rng.uniform(2, 6), rng.uniform(0, 2 * np.pi, size=2)
    kind = rng.integers(4)
    if kind == 0:
        return np.asarray(np.clip(0.5 + along, 0, 1))
    if kind == 1:
        return np.asarray(0.5 + 0.5 * np.tanh(2.5 * np.sin(frequency * along + phase[0])))
    if kind == 2:
        dots = np.sin(frequency * along + phase[0]) * np.sin(frequency * across + phase[1])
        return np.asarray(0.5 + 0.5 * np.tanh(3 * dots))
    cells = int(rng.integers(3, 12))
    grid = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    noise = grid.resize((x.shape[1], x.shape[0]), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(noise, dtype=np.float64), 0, 1)


def _photograph(rng: np.random.Generator, canvas: Floats, rows: Floats, columns: Floats) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 picture of a canvas of 0..1, with a light gradient, slight blur and sensor noise."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    height, width = rows.shape
    slope = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5)
    lit = canvas * (rng.uniform(0.8, 1.05) + strength * slope)[..., None]
    sharp = Image.fromarray((np.clip(lit, 0, 1) * 255).round().astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7))), dtype=np.float64)
    noise = rng.normal(0, rng.uniform(1, 8), size=canvas.shape)
    return np.asarray(np.clip(blurred + noise, 0, 255).round().astype(np.uint8))


def _borders(instances: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(H, W) bool: pixels with a 4-neighbour of another instance, a 2-pixel line along every edge."""
    borders = np.zeros(instances.shape, dtype=bool)
    vertical = instances[1:] != instances[:-1]
    borders[1:] |= vertical
    borders[:-1] |= vertical
    horizontal = instances[:, 1:] != instances[:, :-1]
    borders[:, 1:] |= horizontal
    borders[:, :-1] |= horizontal
    return borders


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """(3,) RGB 0..1 of a hue in degrees, a saturation and a value 0..1."""
    sector = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)
