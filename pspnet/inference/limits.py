"""Limits of a request's size, of one forward pass and of an answer, and their environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pspnet.errors import ConfigError

PREFIX = "PSPNET_"
LARGE_IMAGES = ("tile", "scale", "refuse")

MAX_SIDE = 65_500
"""Longest side of an image in pixels: what a JPEG can hold, so that every answer can show it."""

# Allowed range of each value. Nothing works below the lower bound; a value above the upper one is a typing error.
_BOUNDS = {
    "request_bytes": (1_000, 1_073_741_824),
    "pixels": (1_024, 1_000_000_000),
    "pass_pixels": (4_096, 100_000_000),
    "answer_bytes": (1_000, 1_073_741_824),
}


@dataclass(frozen=True)
class Limits:
    """Limits of one request. Each is also an environment variable: `pixels` is PSPNET_PIXELS.

    request_bytes: largest body. SageMaker's endpoints accept less (docs/endpoint.md); deployment sets their limit.
    pixels: largest image, checked in its header before it is decoded. 25 million are 6000 x 4166.
    pass_pixels: pixels of one forward pass, of one image or of a batch; this bounds the memory.
    large_images: handling of an image above pass_pixels: `tile` (overlapping windows), `scale` (shrink the image,
        enlarge its mask) or `refuse`.
    answer_bytes: largest answer.
    """

    request_bytes: int = 25_000_000
    pixels: int = 25_000_000
    pass_pixels: int = 1280 * 1024
    large_images: str = "tile"
    answer_bytes: int = 25_000_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Limits:
        """Read the limits from PSPNET_REQUEST_BYTES, PSPNET_PIXELS ...; unset ones keep their default.

        Raises ConfigError that lists every invalid variable.
        """
        environment = os.environ if environment is None else environment
        values = {}
        problems = []
        for key, (low, high) in _BOUNDS.items():
            name = PREFIX + key.upper()
            text = environment.get(name, "").strip()
            value = _whole_number(text)
            if value is not None and low <= value <= high:
                values[key] = value
            elif text:
                problems.append(f"{name} = {text[:80]!r}: expected a whole number from {low:,} to {high:,}.")
        name = PREFIX + "LARGE_IMAGES"
        large_images = environment.get(name, "").strip().lower() or cls.large_images
        if large_images not in LARGE_IMAGES:
            problems.append(f"{name} = {large_images[:80]!r}: expected one of {', '.join(LARGE_IMAGES)}.")
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(large_images=large_images, **values)


DEFAULT_LIMITS = Limits()


def _whole_number(text: str) -> int | None:
    """`25_000_000` -> 25000000; None for any other text."""
    digits = text.replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
