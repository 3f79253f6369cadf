"""A request's bytes -> image, and the errors that an endpoint answers with.

Legend: H, W image height and width.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pspnet.data.images import to_rgb
from pspnet.errors import PspnetError
from pspnet.serving.limits import DEFAULT_LIMITS, Limits

__all__ = ["Limits", "RequestError", "decode_image"]

_IMAGES = ("image/jpeg", "image/jpg", "image/png", "image/webp")
_NPY = "application/x-npy"
# Clients that name no type, and the names under which generic ones send images: the content decides.
_ANYTHING = ("", "application/x-image", "application/octet-stream", "binary/octet-stream")
_EXPECTED = "send image/jpeg, image/png, image/webp or application/x-npy"


class RequestError(PspnetError):
    """A request that cannot be answered; `status` is the HTTP status, the text one plain sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def decode_image(body: bytes, content_type: str | None, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image of a request's body, on its stored pixel grid (EXIF orientation is not applied).

    Raises RequestError: 415 for a content type that is none of images, 413 for more bytes or pixels than `limits`
    allow, 400 for a body that is no such image.
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
    return _decode_picture(body, limits)


def _decode_picture(body: bytes, limits: Limits) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > limits.pixels:
                raise RequestError(
                    413,
                    f"The image has {image.width}x{image.height} pixels; this endpoint takes at most "
                    f"{limits.pixels:,} of them.",
                )
            return to_rgb(image)
    except Image.DecompressionBombError:
        raise RequestError(413, "The image has too many pixels; send a smaller one.") from None
    except RequestError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError):
        raise RequestError(
            400, "The body is no readable JPEG, PNG or WebP image; it may be damaged or cut short."
        ) from None
