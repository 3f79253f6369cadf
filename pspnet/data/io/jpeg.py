"""A faster way to decode the usual JPEG file, with Pillow's pixels.

simplejpeg calls libjpeg-turbo, as Pillow does, but has it write the RGB array itself: Pillow decodes to four bytes a
pixel, and copies them twice on the way to an array. It is asked to be strict, so that it refuses every file that is cut
short, and also whatever libjpeg merely warns of. What it does not decode is Pillow's to read or to refuse.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # optional: Pillow reads every file that it reads
    simplejpeg = None

_START = b"\xff\xd8\xff"
# CMYK's conversion to RGB is rounded differently; Pillow's is the one that counts.
_COLOURS = ("YCbCr", "RGB", "Gray")


def decode_rgb(body: bytes, check_size: Callable[[int, int], None] | None = None) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB of a whole, undamaged JPEG file, bit for bit as Pillow gives it; None leaves it to Pillow.

    Files of more pixels than Pillow decodes without a warning are left to Pillow too, before anything is decoded.

    Args:
        check_size: called with height and width before anything is decoded; what it raises is raised.
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
