"""Stream model backed by an endpoint: frames are sent as JPEG, masks come back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pspnet.classes import palette_for
from pspnet.client.endpoint_client import EndpointClient
from pspnet.client.transport import EndpointError
from pspnet.errors import DataError, PspnetError
from pspnet.stream.model import ModelUnavailable

# No answer, no such endpoint (yet), busy, or a gateway that cannot reach it. Other statuses concern the one frame.
_UNREACHABLE = (0, 404, 429, 502, 503, 504)


class EndpointModel:
    """Masks from an endpoint."""

    def __init__(self, client: EndpointClient, class_names: tuple[str, ...] = (), quality: int = 90) -> None:
        """Use `client` without retries: the stream itself retries, with a newer frame if it has one.

        Args:
            class_names: names of the class ids, for overlays; an answer does not carry them.
            quality: JPEG quality, 1 to 100.
        """
        self._client = client
        self._quality = quality
        self.class_names = class_names
        self.palette = palette_for(class_names)

    def prepare(self, height: int, width: int) -> None:
        """Do nothing: the first answer for a frame size may be slower than the others."""

    def mask(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8. Raises PspnetError for this frame, ModelUnavailable for any."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=self._quality)
        try:
            mask = self._client(buffer.getvalue())
        except DataError:
            raise
        except PspnetError as error:
            # Other than EndpointError: credentials, permissions, the network.
            if isinstance(error, EndpointError) and error.status not in _UNREACHABLE:
                raise
            raise ModelUnavailable(str(error)) from error
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"The endpoint returned a mask of {_size(mask)} for a frame of {_size(image)}; expected the same size."
            )
        return mask

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
