"""Bytes <-> images and masks: what an endpoint takes and answers, and the errors that it answers with.

Legend: H, W image height and width.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pspnet.data.images import to_rgb
from pspnet.errors import PspnetError

PNG = "image/png"
JSON = "application/json"
ANSWERS = (PNG, JSON)
"""Media types that a mask can be answered in; the first one is the default."""

_IMAGES = {"image/jpeg": "JPEG", "image/jpg": "JPEG", PNG: "PNG"}


class RequestError(PspnetError):
    """A request that cannot be answered; `status` is the HTTP status, the text one plain sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Prediction:
    """A mask, (H, W) uint8 class ids, and the names of the classes in the order of their ids."""

    mask: np.ndarray
    class_names: tuple[str, ...]


def decode_image(body: bytes, content_type: str) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image of a request's body, on its stored pixel grid (EXIF orientation is not applied).

    Raises RequestError: 415 for a content type other than JPEG and PNG, 400 for a body that is neither, 413 for more
    pixels than Pillow decodes.
    """
    media_type = _media_type(content_type)
    if media_type not in _IMAGES:
        found = f"is {media_type!r}" if media_type else "is missing"
        raise RequestError(415, f"The content type {found}; send image/jpeg or image/png.")
    if not body:
        raise RequestError(400, "The request has no body; send the bytes of a JPEG or PNG image.")
    try:
        with Image.open(io.BytesIO(body)) as image:
            if image.format not in _IMAGES.values():
                raise RequestError(400, f"The image is a {image.format} file; send a JPEG or PNG image.")
            return to_rgb(image)
    except Image.DecompressionBombError:
        raise RequestError(413, "The image has too many pixels; send a smaller one.") from None
    # Pillow reports damaged files in all of these ways; RequestError is a ValueError too.
    except RequestError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError):
        raise RequestError(400, "The body is no readable JPEG or PNG image; it may be damaged or cut short.") from None


def choose_answer(accept: str | None) -> str:
    """The media type of the answer to an Accept header; image/png where any will do. RequestError 406 for others."""
    wanted = [_media_type(part) for part in (accept or "").split(",")]
    for media_type in wanted:
        if media_type in ANSWERS:
            return media_type
        if media_type in ("", "*/*", "image/*"):
            return PNG
        if media_type == "application/*":
            return JSON
    raise RequestError(406, f"The answer cannot be {accept!r}; accept {' or '.join(ANSWERS)}.")


def encode(prediction: Prediction, media_type: str) -> bytes:
    """The answer's body in one of ANSWERS."""
    if media_type == JSON:
        return json.dumps(class_counts(prediction)).encode()
    return encode_mask(prediction.mask)


def encode_mask(mask: np.ndarray) -> bytes:
    """An 8-bit greyscale PNG of the mask's size whose pixel values are the class ids.

    Args:
        mask: (H, W) uint8 class ids.
    """
    buffer = io.BytesIO()
    # Fast compression: masks are so regular that a slower one gains few bytes, and the driver waits.
    Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def class_counts(prediction: Prediction) -> dict[str, Any]:
    """Size of the mask, and for every class in it its id, name, pixels and share of all pixels."""
    mask = prediction.mask
    counts = np.bincount(mask.ravel(), minlength=len(prediction.class_names))
    classes = [
        {"id": index, "name": name, "pixels": int(counts[index]), "share": float(counts[index] / mask.size)}
        for index, name in enumerate(prediction.class_names)
        if counts[index]
    ]
    return {"height": mask.shape[0], "width": mask.shape[1], "classes": classes}


def _media_type(text: str | None) -> str:
    """`Image/PNG; q=0.5` -> `image/png`."""
    return (text or "").split(";")[0].strip().lower()
