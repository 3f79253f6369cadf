"""An endpoint as the model of a stream: frames leave as JPEG, masks come back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pspnet.classes import palette_for
from pspnet.client.transport import EndpointError
from pspnet.errors import DataError
from pspnet.stream.model import ModelUnavailable
from sagemaker_entry.aws.session import AwsError
from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

# No answer, no such endpoint (yet), busy, or a gateway without the endpoint behind it. Others are about the one frame.
_UNREACHABLE = (0, 404, 429, 502, 503, 504)


class EndpointModel:
    """Masks from an endpoint, by its name in SageMaker or its address."""

    def __init__(
        self,
        endpoint: str,
        class_names: tuple[str, ...] = (),
        *,
        quality: int = 90,
        timeout: float = 30.0,
        region: str | None = None,
        profile: str | None = None,
    ) -> None:
        """class_names: what its ids stand for, for overlays; an answer does not say. quality: of the JPEG, 1 to 100.

        Raises PspnetError as EndpointPredictor.
        """
        # The stream itself tries again, with a newer frame where there is one.
        self._predictor = EndpointPredictor(endpoint, retries=0, timeout=timeout, region=region, profile=profile)
        self._quality = quality
        self.class_names = class_names
        self.palette = palette_for(class_names)

    def prepare(self, height: int, width: int) -> None:
        """Nothing: the endpoint's first answer for a size may be slower than the others."""

    def mask(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8. Raises PspnetError for this frame, ModelUnavailable for any."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=self._quality)
        try:
            mask = self._predictor(buffer.getvalue())
        except EndpointError as error:
            if error.status in _UNREACHABLE:
                raise ModelUnavailable(str(error)) from error
            raise
        except AwsError as error:  # credentials, permissions, the network
            raise ModelUnavailable(str(error)) from error
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"The endpoint answered a mask of {_size(mask)} to a frame of {_size(image)}; expected the same size."
            )
        return mask

    def close(self) -> None:
        """Close the connections."""
        self._predictor.close()


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
