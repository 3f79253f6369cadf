"""Client of a segmentation endpoint: encode the image, send it with retries, decode the mask.

Legend: C classes; H, W image height and width.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Union

import numpy as np
from PIL import Image

from pspnet.client.transport import EndpointError, Reply, Transport
from pspnet.data.io.images import to_rgb
from pspnet.errors import DataError
from pspnet.system.backoff import Backoff

Client = TypeVar("Client", bound="EndpointClient")
ImageLike = Union[str, "PathLike[str]", bytes, Image.Image, np.ndarray]

MASK = "image/png"
PROBABILITIES = "application/x-recordio-protobuf"
SUMMARY = "application/json"

_RETRIED = (429, 503)
_FIRST_DELAY, _MAX_DELAY = 0.2, 8.0  # seconds
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"RIFF", "image/webp"),
    (b"\x93NUMPY", "application/x-npy"),
)


class EndpointClient:
    """Masks from an endpoint over a `Transport`, with the call signature of `pspnet.Predictor`.

    >>> client = EndpointClient(HttpTransport("http://127.0.0.1:8080"), "http://127.0.0.1:8080")
    >>> mask = client("frame.jpg")  # (H, W) uint8 class ids, the size of the frame

    Thread-safe; connections are kept open between requests. A busy (503) or throttled (429) endpoint is retried with
    exponential backoff and jitter.
    """

    def __init__(self, transport: Transport, endpoint: str, retries: int = 4) -> None:
        """Send no image yet.

        Args:
            transport: the connection to the endpoint; `close` closes it.
            endpoint: its name or URL, for error messages.
            retries: retries of a request that a busy endpoint refused.
        """
        self.endpoint = endpoint
        self._transport = transport
        self._retries = retries

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Segment one image.

        Args:
            image: path of an image file, its bytes, a Pillow image, or an (H, W, 3) uint8 RGB array.

        Returns:
            (H, W) uint8 mask on the image's stored pixel grid (EXIF orientation is not applied).

        Raises:
            DataError: the image cannot be read, or is larger than a request may be.
            EndpointError: the endpoint refused it or cannot be reached; the text includes its message.
            AwsError: AWS refused the request, for example for missing credentials or permissions.
        """
        return decode_mask(self.ask(image, MASK).body)

    def probabilities(self, image: ImageLike, dtype: str = "float32") -> np.ndarray:
        """Return the (C, H, W) float32 class probabilities.

        An endpoint refuses answers above its size limit. `dtype` is the precision on the wire: float32 in the built-in
        algorithm's format; float16 or uint8 (steps of 1/255) compressed, which only pspnet endpoints support.
        """
        if dtype == "float32":
            from pspnet.client.probability_record import decode_probabilities

            return decode_probabilities(self.ask(image, PROBABILITIES).body)
        if dtype not in ("float16", "uint8"):
            raise DataError(f"dtype: found {dtype!r}; expected float32, float16 or uint8.")
        content = self.ask(image, f"application/x-npz; probabilities={dtype}").body
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                values = np.asarray(arrays["probabilities"], dtype=np.float32)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.endpoint}: the answer is not the requested NPZ file.") from error
        return values / 255 if dtype == "uint8" else values

    def summary(self, image: ImageLike) -> dict[str, Any]:
        """Return height and width, and the id, name, pixel count and pixel fraction of every class in the mask."""
        content = self.ask(image, SUMMARY).body
        try:
            value = json.loads(content)
        except ValueError as error:
            raise DataError(f"{self.endpoint}: the answer is not the requested JSON summary.") from error
        if not isinstance(value, dict):
            raise DataError(f"{self.endpoint}: the answer is not the requested JSON summary.")
        return value

    def ask(self, image: ImageLike, accept: str) -> Reply:
        """Return the endpoint's raw answer for an Accept header."""
        body, content_type = encode_image(image)
        largest = self._transport.largest
        if largest is not None and len(body) > largest:
            raise DataError(
                f"the image has {len(body):,} bytes as {content_type}, above the request limit of {largest:,}; send "
                "it as JPEG or smaller, or use `transform`."
            )
        backoff = Backoff(_FIRST_DELAY, _MAX_DELAY)
        for attempt in range(self._retries + 1):
            try:
                return self._transport.send(body, content_type, accept)
            except EndpointError as error:
                if error.status not in _RETRIED or attempt == self._retries:
                    raise
                time.sleep(min(max(backoff.next(), error.retry_after or 0.0), 2 * _MAX_DELAY))
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def __enter__(self: Client) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode_image(image: ImageLike) -> tuple[bytes, str]:
    """Return body and content type for an image. Files and bytes are sent unchanged, pixels as a lossless PNG.

    Raises DataError for anything else.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"the image is an array of shape {image.shape} and type {image.dtype}; expected (H, W, 3) uint8 RGB."
            )
        return _png(Image.fromarray(np.ascontiguousarray(image))), "image/png"
    if isinstance(image, Image.Image):
        try:
            return _png(Image.fromarray(to_rgb(image))), "image/png"
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reads the pixels only now
            raise DataError(f"the image cannot be read: {error}.") from error
    where = "the image" if isinstance(image, bytes) else str(image)
    try:
        body = image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    for magic, content_type in _MAGIC:
        if body.startswith(magic) and (magic != b"RIFF" or body[8:12] == b"WEBP"):
            return body, content_type
    found = f"begins with {body[:8]!r}" if body else "is empty"
    raise DataError(f"{where}: {found}; expected a JPEG, PNG, WebP or NPY file.")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode_mask(content: bytes) -> np.ndarray:
    """Return the (H, W) uint8 class ids of a greyscale or palette PNG. Raises DataError for anything else."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format == "PNG" and picture.mode in ("L", "P"):
                return np.array(picture)
            found = f"a {picture.format} image of mode {picture.mode}"
    except (OSError, SyntaxError, ValueError) as error:
        found = f"not an image ({error})"
    raise DataError(f"the endpoint's answer is {found}; expected an 8-bit PNG of class ids.")
