"""Lambda function settings from environment variables. Needs no package beyond NumPy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.driving.view import Camera, View, ViewError
from pspnet.errors import ConfigError

DEFAULT_OUTPUT_PREFIX = "summaries/"
LARGEST_BYTES = 64 * 1024 * 1024
"""Size limit of a mask file: the file and its decoded masks must fit into the function's memory."""

_NUMBERS = ("COLUMN", "BOTTOM", "VEHICLE_WIDTH", "HORIZON", "CAMERA_HEIGHT", "CAMERA_PITCH", "CAMERA_FOCAL")
_TARGET = re.compile(r"arn:[a-z-]+:(sqs|sns):([a-z0-9-]+):(\d{12}):([\w.-]+)", re.ASCII)


@dataclass(frozen=True)
class Target:
    """Target of forwarded results: an SQS queue or an SNS topic."""

    arn: str
    service: str
    region: str
    account: str
    name: str


@dataclass(frozen=True)
class LambdaSettings:
    """The function's settings.

    output_prefix: prefix of the summaries; keys with it are never read as masks.
    classes: names in id order, for masks without names.
    drivable: names or ids of the drivable classes; empty for class fractions only.
    numbers: the given numbers of the view, by variable name without PSPNET_.
    forward_to: target of a message for every mask file, or None.
    largest_bytes: size limit of a mask file.
    """

    output_prefix: str
    classes: tuple[str, ...]
    drivable: tuple[str, ...]
    numbers: Mapping[str, float]
    forward_to: Target | None
    largest_bytes: int

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
        if "CAMERA_HEIGHT" in self.numbers:
            camera = Camera(*(self.numbers[f"CAMERA_{name}"] for name in ("HEIGHT", "PITCH", "FOCAL")))
        return View(
            frozenset(int(text) if text.isdigit() else ids[text] for text in self.drivable),
            column=self.numbers.get("COLUMN", 0.5),
            bottom=self.numbers.get("BOTTOM", 1.0),
            width=self.numbers.get("VEHICLE_WIDTH"),
            horizon=self.numbers.get("HORIZON"),
            camera=camera,
        )


def read_settings(environment: Mapping[str, str]) -> LambdaSettings:
    """Return the settings from PSPNET_ variables. Raises ConfigError that lists every problem."""
    problems: list[str] = []
    prefix = environment.get("PSPNET_OUTPUT_PREFIX", "") or DEFAULT_OUTPUT_PREFIX
    if not prefix.endswith("/") or prefix.startswith("/"):
        problems.append(
            f"PSPNET_OUTPUT_PREFIX: found {prefix!r}, expected a folder of the bucket such as 'summaries/'."
        )
    drivable = _names(environment.get("PSPNET_DRIVABLE", ""))
    problems += [
        f"PSPNET_DRIVABLE: found the class id {text}, expected 0 to 255."
        for text in drivable
        if text.isdigit() and int(text) > 255
    ]
    numbers = _numbers(environment, problems)
    target = environment.get("PSPNET_FORWARD_TO", "").strip()
    match = _TARGET.fullmatch(target)
    if target and match is None:
        problems.append(f"PSPNET_FORWARD_TO: found {target!r}, expected the ARN of an SQS queue or an SNS topic.")
    largest = environment.get("PSPNET_LARGEST_BYTES", "") or str(LARGEST_BYTES)
    if not largest.isdigit() or int(largest) < 1:
        problems.append(f"PSPNET_LARGEST_BYTES: found {largest!r}, expected a whole number of bytes.")
    settings = LambdaSettings(
        prefix,
        _classes(environment.get("PSPNET_CLASSES", "")),
        drivable,
        numbers,
        Target(target, match[1], match[2], match[3], match[4]) if match else None,
        int(largest) if largest.isdigit() else LARGEST_BYTES,
    )
    problems += _view_problems(settings) if not problems else []
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _classes(text: str) -> tuple[str, ...]:
    names = _names(text)
    return NAMED_CLASS_SETS.get(names[0], names) if len(names) == 1 else names


def _numbers(environment: Mapping[str, str], problems: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in _NUMBERS:
        text = environment.get(f"PSPNET_{name}", "").strip()
        try:
            if text:
                found[name] = float(text)
        except ValueError:
            problems.append(f"PSPNET_{name}: found {text!r}, expected a number.")
    given = [name for name in _NUMBERS if name.startswith("CAMERA_") and environment.get(f"PSPNET_{name}", "").strip()]
    if given and len(given) < 3:
        problems.append(
            f"PSPNET_{given[0]}: a camera needs PSPNET_CAMERA_HEIGHT, PSPNET_CAMERA_PITCH and PSPNET_CAMERA_FOCAL."
        )
    return found


def _view_problems(settings: LambdaSettings) -> list[str]:
    """Return the problems of the numbers in combination. Class names are checked later, against each mask's."""
    if settings.numbers and not settings.drivable:
        return ["PSPNET_DRIVABLE: not set, and the other numbers need it; name the drivable classes."]
    try:
        settings.view([text for text in settings.drivable if not text.isdigit()])
    except ViewError as error:
        return [str(error)]
    return []
