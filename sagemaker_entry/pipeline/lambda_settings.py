"""Lambda function settings from environment variables. Needs no package beyond NumPy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.config.problems import Problem
from pspnet.config.settings import Settings, setting
from pspnet.driving.view import Camera, View, ViewError
from pspnet.errors import ConfigError

_TARGET = re.compile(r"arn:[a-z-]+:(sqs|sns):([a-z0-9-]+):(\d{12}):([\w.-]+)", re.ASCII)
_NUMBERS = ("column", "bottom", "vehicle_width", "horizon", "camera_height", "camera_pitch", "camera_focal")


@dataclass(frozen=True)
class Target:
    """Target of forwarded results: an SQS queue or an SNS topic."""

    arn: str
    service: str
    region: str
    account: str
    name: str


def _prefix(text: str) -> str:
    if not text.endswith("/") or text.startswith("/"):
        raise ValueError("not a folder")
    return text


def _target(text: str) -> str:
    if not _TARGET.fullmatch(text):
        raise ValueError("not the ARN of a queue or topic")
    return text


def _classes(names: tuple[str, ...]) -> tuple[str, ...]:
    return NAMED_CLASS_SETS.get(names[0], names) if len(names) == 1 else names


def _drivable(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(text.isdigit() and int(text) > 255 for text in names):
        raise ValueError("not a class id")
    return names


@dataclass(frozen=True, init=False)
class LambdaSettings(Settings):
    """The function's settings: PSPNET_ and the name in capitals. Numbers of the view are those of `View`."""

    ENVIRONMENT: ClassVar[str] = "PSPNET_"

    output_prefix: str = setting(
        "summaries/",
        "prefix of the summaries; keys with it are never read as masks",
        allowed="a folder of the bucket such as summaries/",
        check=_prefix,
    )
    classes: tuple[str, ...] = setting((), "names in id order, for masks without names", check=_classes)
    drivable: tuple[str, ...] = setting(
        (), "drivable classes; class fractions only if empty", allowed="names, or ids from 0 to 255", check=_drivable
    )
    column: float | None = setting(None, "centre of the vehicle")
    bottom: float | None = setting(None, "lowest row above its own hood")
    vehicle_width: float | None = setting(None, "width of the vehicle")
    horizon: float | None = setting(None, "row of the horizon")
    camera_height: float | None = setting(None, "height of the camera in metres")
    camera_pitch: float | None = setting(None, "pitch of the camera in degrees")
    camera_focal: float | None = setting(None, "focal length divided by the image's height")
    forward_to: str | None = setting(
        None, "target of a message per mask file", allowed="the ARN of an SQS queue or an SNS topic", check=_target
    )
    # The file and its decoded masks must fit into the function's memory.
    largest_bytes: int = setting(64 * 1024 * 1024, "size limit of a mask file", ge=1)

    @property
    def target(self) -> Target | None:
        """The parts of forward_to."""
        match = _TARGET.fullmatch(self.forward_to or "")
        return Target(match[0], match[1], match[2], match[3], match[4]) if match else None

    def conflicts(self) -> Iterator[Problem]:
        """See Settings. Class names are checked later, against each mask's."""
        camera = {key: getattr(self, key) for key in _NUMBERS if key.startswith("camera_")}
        given = [key for key, value in camera.items() if value is not None]
        if given and len(given) < len(camera):
            fix = f"a camera needs {', '.join(camera)}"
            yield Problem(given[0], "given without the others", fix, tuple(camera))
        elif not self.drivable and any(getattr(self, key) is not None for key in _NUMBERS):
            yield Problem("drivable", "not set, and the other numbers need it", "name the drivable classes", _NUMBERS)
        else:
            try:
                self.view([text for text in self.drivable if not text.isdigit()])
            except ViewError as error:
                yield Problem("drivable", "given with wrong numbers", str(error), _NUMBERS)

    def view(self, class_names: Sequence[str]) -> View | None:
        """Return the view for masks of these classes. Raises ConfigError for an unknown drivable class."""
        if not self.drivable:
            return None
        ids = {name: index for index, name in enumerate(class_names)}
        unknown = [text for text in self.drivable if not text.isdigit() and text not in ids]
        if unknown:
            known = ", ".join(class_names) or "unknown: set PSPNET_CLASSES, or give ids"
            raise ConfigError(f"PSPNET_DRIVABLE: found {', '.join(unknown)}; the masks' classes are {known}.")
        camera = None
        if self.camera_height is not None and self.camera_pitch is not None and self.camera_focal is not None:
            camera = Camera(self.camera_height, self.camera_pitch, self.camera_focal)
        return View(
            frozenset(int(text) if text.isdigit() else ids[text] for text in self.drivable),
            column=0.5 if self.column is None else self.column,
            bottom=1.0 if self.bottom is None else self.bottom,
            width=self.vehicle_width,
            horizon=self.horizon,
            camera=camera,
        )
