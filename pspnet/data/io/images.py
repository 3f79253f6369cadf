"""Image and annotation files to arrays, and masks to palette PNG files.

Pixels equal Pillow's, also those of `jpeg.py` and `palette_png.py`: Pillow keeps palette indices (OpenCV and
torchvision convert them to colours) and rejects truncated files instead of returning a partly grey image. Arrays have
the stored pixel grid: EXIF orientation is not applied. Files are read sequentially into memory before decoding, which
is fast on network file systems and in SageMaker's FastFile mode.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pspnet.data.io.jpeg import decode_rgb
from pspnet.data.io.palette_png import decode_indices
from pspnet.errors import AnnotationModeError, DataError
from pspnet.system.atomic_files import atomic_write

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ANNOTATION_SUFFIXES = (".png",)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG or PNG file of any mode; 16-bit greyscale is scaled to 8 bits.

    Raises DataError for a file that is missing, unreadable or truncated.
    """
    try:
        body = path.read_bytes()
        pixels = decode_rgb(body)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(body)) as image:
            return to_rgb(image)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable image ({_reason(error)}). Replace or remove the file.") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a Pillow image of any mode. Transparency is dropped, not blended."""
    if image.mode.startswith(("I", "F")):
        # Pillow's own conversion clips 16-bit values at 255, which makes most such images white.
        values = np.nan_to_num(np.asarray(image), nan=0.0) if image.mode == "F" else np.asarray(image)
        grey = (np.clip(values, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_annotation(path: Path) -> np.ndarray:
    """(H, W) uint8 pixel values of an 8-bit single-channel PNG, or the indices of a palette PNG.

    Raises DataError for an unreadable file, AnnotationModeError for modes whose values are not class ids.
    """
    try:
        body = path.read_bytes()
        indices = decode_indices(body)
        if indices is not None:
            return indices
        with Image.open(io.BytesIO(body)) as image:
            problem = _annotation_problem(image)
            if problem is None:
                return np.asarray(image)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable annotation ({_reason(error)}). Replace or remove the file.") from error
    raise AnnotationModeError(f"{path}: {problem}")


def _annotation_problem(image: Image.Image) -> str | None:
    if image.format != "PNG":
        return (
            f"annotations must be PNG files; this one is {image.format}. Lossy formats change class ids: "
            "write the mask again as an 8-bit single-channel or palette PNG."
        )
    # Pillow scales 1-, 2- and 4-bit greyscale to 0..255, so it would not return the stored values.
    tiles = getattr(image, "tile", None)
    stored = str(tiles[0][3]) if tiles else image.mode
    if image.mode == "P" or (image.mode == "L" and stored == "L"):
        return None
    found = {"RGB": "an RGB", "RGBA": "an RGBA", "LA": "a grey-and-alpha", "1": "a 1-bit"}.get(image.mode)
    if found is None:
        found = "a 16-bit" if image.mode.startswith("I") else f"a {stored} (mode {image.mode})"
    return (
        f"found {found} PNG; an annotation is an 8-bit single-channel or palette PNG whose pixel value is the class "
        "id. Convert the colours to class ids first."
    )


def encode_palette_png(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A Pillow palette image of an (H, W) uint8 mask; its indices are the class ids."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def write_palette_png(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    """Write an (H, W) uint8 mask as a palette PNG, atomically."""
    write_image(path, encode_palette_png(mask, palette))


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Save an image atomically, as JPEG or PNG by the suffix."""
    with atomic_write(path) as temporary:
        image.save(temporary, **options)


# Exceptions that Pillow raises for truncated or overwritten images.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = str(error).split("\n")[0]
    return "unknown image format" if "cannot identify image file" in text else text or type(error).__name__
