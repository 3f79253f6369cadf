"""A request's bytes -> image.

Legend: H, W image height and width.
"""

from __future__ import annotations

import io
import logging

import numpy as np
from PIL import Image

from pspnet.data.io.images import to_rgb
from pspnet.data.io.jpeg import decode_rgb
from pspnet.inference.limits import DEFAULT_LIMITS, MAX_SIDE, Limits
from pspnet.inference.tiling import padded_pixels
from pspnet.serving.protocol.npy import MAGIC, NpyError, read_pixels, read_shape
from pspnet.serving.protocol.request_error import RequestError

__all__ = ["Limits", "decode_image"]

_log = logging.getLogger(__name__)

_NPY = "application/x-npy"
_IMAGES = ("image/jpeg", "image/jpg", "image/png", "image/webp")
# No type, and the names under which generic clients and other built-in algorithms send images: the content decides.
_ANYTHING = ("", "application/x-image", "application/octet-stream", "binary/octet-stream")
_EXPECTED = "send image/jpeg, image/png, image/webp or application/x-npy"
# Decoders that a request may reach. A JPEG with several pictures in it (phones) opens as MPO.
_FORMATS = ("JPEG", "PNG", "WEBP")
_OTHER_FILES = {b"GIF8": "GIF", b"BM": "BMP", b"II*": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG"}
_DAMAGED = "The body is no readable JPEG, PNG or WebP image; it may be damaged or cut short."


def decode_image(body: bytes, content_type: str | None, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image of a request's body, on its stored pixel grid (EXIF orientation is not applied).

    The pixels are those that training reads from a file of these bytes (pspnet.data.io.images.read_image).

    Args:
        body: a JPEG, PNG or WebP file, or an (H, W, 3) or (H, W) uint8 array as numpy.save writes it.
        content_type: as the request names it. Any image type stands for any of the three formats; no type,
            application/octet-stream and application/x-image stand for all that can be read.
        limits: bytes and pixels that are let in; pixels are checked before anything is decoded.

    Raises RequestError: 415 for another content type, 413 for too many bytes or pixels, 400 for a body that is no
    such image.
    """
    media_type = (content_type or "").split(";")[0].strip().lower()
    if media_type not in (*_IMAGES, _NPY, *_ANYTHING):
        raise RequestError(415, f"The content type is {media_type[:80]!r}; {_EXPECTED}.")
    if not body:
        raise RequestError(400, f"The request has no body; {_EXPECTED}.")
    if len(body) > limits.request_bytes:
        raise RequestError(
            413, f"The body has {len(body):,} bytes; this endpoint takes at most {limits.request_bytes:,}."
        )
    if media_type == _NPY or (media_type in _ANYTHING and body[: len(MAGIC)] == MAGIC):
        return _decode_npy(body, limits)
    return _decode_picture(body, limits)


def _decode_npy(body: bytes, limits: Limits) -> np.ndarray:
    try:
        shape, fortran, offset = read_shape(body)
    except NpyError as error:
        raise RequestError(400, f"The NPY body {error}") from None
    _check_size(shape[0], shape[1], limits)
    return read_pixels(body, shape, fortran, offset)


def _decode_picture(body: bytes, limits: Limits) -> np.ndarray:
    try:
        pixels = decode_rgb(body, lambda height, width: _check_size(height, width, limits))
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
            _check_size(image.height, image.width, limits)
            return to_rgb(image)
    except (RequestError, MemoryError):
        raise
    except Image.DecompressionBombError:  # far above any limit that can be set; Pillow reads the header only
        raise RequestError(
            413,
            f"The image has far more than the {limits.pixels:,} pixels that this endpoint takes; send a smaller one.",
        ) from None
    except (
        Exception
    ) as error:  # Pillow reports damage as OSError, SyntaxError, ValueError, struct.error, IndexError ...
        _log.debug("unreadable image: %r", error)
        other = next((name for start, name in _OTHER_FILES.items() if body.startswith(start)), None)
        raise RequestError(400, f"The image is a {other} file; {_EXPECTED}." if other else _DAMAGED) from None


def _check_size(height: int, width: int, limits: Limits) -> None:
    """Padded, so that a line one pixel high counts as what the network will see."""
    if max(height, width) > MAX_SIDE or padded_pixels(height, width) > limits.pixels:
        raise RequestError(
            413,
            f"The image has {width}x{height} pixels; this endpoint takes at most {limits.pixels:,} of them and "
            f"{MAX_SIDE:,} on a side.",
        )
