"""Fast decoder of common JPEG files, with Pillow's pixels.

simplejpeg calls libjpeg-turbo like Pillow, but decodes directly into the RGB array, while Pillow decodes to four bytes
per pixel and copies them twice. In strict mode it rejects truncated files and files with libjpeg warnings. Pillow
handles the files that it does not decode.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # optional: Pillow reads the same files
    simplejpeg = None

_START = b"\xff\xd8\xff"
# CMYK is left to Pillow, whose conversion to RGB rounds differently.
_COLOURS = ("YCbCr", "RGB", "Gray")


def decode_rgb(body: bytes, check_size: Callable[[int, int], None] | None = None) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB of a valid JPEG file, bit for bit equal to Pillow's; None if Pillow must decode it.

    Files with more pixels than Pillow decodes without a warning are also left to Pillow, before decoding.

    Args:
        check_size: called with height and width before decoding; its exceptions propagate.
    """
    if simplejpeg is None or not body.startswith(_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(body)
        if colours not in _COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            return None
    except ValueError:
        return None
    if check_size is not None:
        check_size(height, width)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(body, "RGB")
    except ValueError:
        return None
    return pixels
