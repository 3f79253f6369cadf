"""Limits of a request's size, of one forward pass and of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pspnet.config.settings import Settings, setting

_GROUP = "Limits"
MAX_SIDE = 65_500
"""Longest side of an image in pixels: what a JPEG can hold, so that every answer can show it."""


@dataclass(frozen=True, init=False)
class Limits(Settings):
    """Limits of one request, also from environment variables: `pixels` is PSPNET_PIXELS.

    Nothing works below the lower bounds; a value above the upper ones is a typing error.
    """

    ENVIRONMENT: ClassVar[str] = "PSPNET_"

    # SageMaker's endpoints accept less (docs/endpoint.md); deployment sets their limit.
    request_bytes: int = setting(25_000_000, "largest body of a request in bytes", group=_GROUP, ge=1000, le=2**30)
    # 25 million are 6000 x 4166.
    pixels: int = setting(25_000_000, "largest image, checked before it is decoded", group=_GROUP, ge=1024, le=10**9)
    pass_pixels: int = setting(
        1280 * 1024, "pixels of one forward pass, which bounds the memory", group=_GROUP, ge=4096, le=10**8
    )
    large_images: Literal["tile", "scale", "refuse"] = setting(
        "tile", "images above pass_pixels: overlapping windows, shrink and enlarge the mask, or refuse", group=_GROUP
    )
    answer_bytes: int = setting(25_000_000, "largest answer in bytes", group=_GROUP, ge=1, le=2**30)


DEFAULT_LIMITS = Limits()
