"""How much an endpoint takes, computes at once and answers, and where each figure is set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Optional

from pspnet.errors import ConfigError

PREFIX = "PSPNET_"
LARGE_IMAGES = ("tile", "scale", "refuse")

# What each figure may be: below the first one nothing works, above the second one is a slip of the pen.
_BOUNDS = {
    "request_bytes": (1_000, 1_073_741_824),
    "pixels": (1_024, 1_000_000_000),
    "pass_pixels": (4_096, 100_000_000),
    "answer_bytes": (1_000, 1_073_741_824),
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one request. Each is also an environment variable: `pixels` is PSPNET_PIXELS.

    request_bytes: largest body. 25 MB is what a real-time endpoint lets in.
    pixels: largest image; checked in its header, before it is decoded. 25 million is 6000 x 4166.
    pass_pixels: pixels that run through the network at once, of one image or of a batch; bounds the memory.
    large_images: what becomes of an image above pass_pixels: `tile` (overlapping windows), `scale` (shrink it,
        enlarge its mask), `refuse`.
    answer_bytes: largest answer. 25 MB is what a real-time endpoint lets out.
    """

    request_bytes: int = 25_000_000
    pixels: int = 25_000_000
    pass_pixels: int = 1280 * 1024
    large_images: str = "tile"
    answer_bytes: int = 25_000_000

    @classmethod
    def from_environment(cls, environment: Optional[Mapping[str, str]] = None) -> Limits:
        """The limits that PSPNET_REQUEST_BYTES, PSPNET_PIXELS ... set; the defaults for those that are not set.

        Raises ConfigError that lists every variable whose value cannot be used.
        """
        environment = os.environ if environment is None else environment
        found: dict[str, int] = {}
        problems = []
        for field in fields(cls):
            name = PREFIX + field.name.upper()
            text = environment.get(name, "").strip()
            if not text or field.name not in _BOUNDS:
                continue
            low, high = _BOUNDS[field.name]
            digits = text.replace("_", "")
            if digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(digits) <= high:
                found[field.name] = int(digits)
            else:
                problems.append(f"{name} = {text!r}: expected a whole number from {low} to {high}.")
        name = PREFIX + "LARGE_IMAGES"
        large_images = environment.get(name, "").strip().lower() or cls.large_images
        if large_images not in LARGE_IMAGES:
            problems.append(
                f"{name} = {large_images!r}: expected {', '.join(LARGE_IMAGES[:-1])} or {LARGE_IMAGES[-1]}."
            )
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(**found, large_images=large_images)


DEFAULT_LIMITS = Limits()
