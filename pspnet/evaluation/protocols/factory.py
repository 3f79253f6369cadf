"""Protocols by name, with their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pspnet.errors import ConfigError
from pspnet.evaluation.evaluation_request import ProtocolName
from pspnet.evaluation.protocols.builtin import CentreView
from pspnet.evaluation.protocols.windows import SCALES, WindowSettings
from pspnet.models.constants import MIN_SIZE

PROTOCOLS: tuple[str, ...] = get_args(ProtocolName)


@dataclass(frozen=True)
class Protocol:
    """Protocol for running a network over images to be scored.

    Attributes:
        name: one of PROTOCOLS.
        windows: of slide and multiscale; None for one forward pass per image.
        crop_size: of builtin; None if full images are scored.
    """

    name: str
    windows: WindowSettings | None = None
    crop_size: int | None = None

    @property
    def view(self) -> CentreView | None:
        """Crop of image and mask before scoring; None for full images."""
        return None if self.crop_size is None else CentreView(self.crop_size)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that affect the scores, for JSON."""
        if self.windows is not None:
            return {
                "crop_size": self.windows.crop_size,
                "base_size": self.windows.base_size,
                "stride": self.windows.stride,
                "scales": list(self.windows.scales),
                "flip": self.windows.flip,
            }
        return {} if self.crop_size is None else {"crop_size": self.crop_size}

    def passes(self, height: int, width: int) -> int:
        """Return the number of forward passes of images or windows for an image of this size; 0 without pixels (an
        unreadable file)."""
        if not height or not width:
            return 0
        return 1 if self.windows is None else self.windows.passes(height, width)


def choose_protocols(
    names: Sequence[str],
    crop_size: int | None,
    base_size: int | None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
) -> list[Protocol]:
    """Return protocols by name, in the order of PROTOCOLS; `builtin` adds `whole`, so that it is never shown alone.

    Args:
        crop_size: side of windows and of the built-in's crop in px; None if the model does not record it.
        base_size: long side in px at scale 1, 0 for the image's own; None if the model does not record it.
        scales: of multiscale, None for SCALES.
        flip: for slide and multiscale; None for slide without and multiscale with.

    Raises ConfigError for sizes that a protocol needs and the model does not record.
    """
    if "builtin" in names:
        names = [*names, "whole"]
    scales = SCALES if scales is None else tuple(scales)
    built = []
    for name in PROTOCOLS:
        if name not in names:
            continue
        if name == "whole":
            built.append(Protocol(name))
        elif name == "builtin":
            built.append(Protocol(name, crop_size=_known_crop(crop_size, name)))
        else:
            multiple = name == "multiscale"
            windows = WindowSettings(
                _known_crop(crop_size, name),
                _known_base(base_size, name),
                scales if multiple else (1.0,),
                multiple if flip is None else flip,
            )
            built.append(Protocol(name, windows))
    return built


def _known_crop(crop_size: int | None, protocol: str) -> int:
    if crop_size is None:
        raise ConfigError(
            f"protocol {protocol}: the model directory does not record the crop_size of the training; give --crop_size."
        )
    if crop_size < MIN_SIZE:
        raise ConfigError(f"--crop_size: found {crop_size}; the network needs at least {MIN_SIZE} px.")
    return crop_size


def _known_base(base_size: int | None, protocol: str) -> int:
    if base_size is None:
        raise ConfigError(
            f"protocol {protocol}: the model directory does not record the base_size of the training; give "
            "--base_size (long side in px, 0 for the images' own size)."
        )
    return base_size
