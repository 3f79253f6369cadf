"""Settings of individual sinks, given as --sink_setting NAME=VALUE."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.settings import Settings, setting
from pspnet.masks.writer import SegmentSettings

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, init=False)
class SinkSettings(Settings):
    """Settings of stored masks and webhooks; see docs/mask_format.md."""

    FAMILIAR: ClassVar[Mapping[str, str]] = {"s3_spool": "--spill"}

    mask_encoding: Literal["runs", "png", "files"] = setting(
        "runs", "Encoding of stored masks; files: no segments, one PNG file per mask."
    )
    segment_seconds: float = setting(10.0, "Maximum duration of a segment.", gt=0)
    segment_frames: int = setting(1000, "Maximum number of masks of a segment.", ge=1)
    webhook_send: Literal["png", "json"] = setting("png", "Content of a webhook's requests.")
    webhook_timeout: float = setting(10.0, "Seconds to connect, and for each read.", gt=0, le=600)
    webhook_headers: str | None = setting(
        None, "NAME: VALUE, separated by semicolons; ${VARIABLE} is read from the environment, for secrets."
    )

    def conflicts(self) -> Iterator[Problem]:
        """Invalid headers. Their values are secret, so no message shows one."""
        try:
            self.headers(os.environ)
        except InvalidConfigError as error:
            yield from error.problems

    def segments(self) -> SegmentSettings:
        """Return the settings of stored masks."""
        return SegmentSettings(self.mask_encoding, self.segment_seconds, self.segment_frames)

    def headers(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Parse webhook_headers and expand ${VARIABLE}. Raises ConfigError."""
        headers = {}
        for part in filter(None, (part.strip() for part in (self.webhook_headers or "").split(";"))):
            name, colon, value = part.partition(":")
            if not colon or not _HEADER.fullmatch(name.strip()):
                raise _header_error("invalid header", "expected NAME: VALUE, separated by semicolons")
            missing = [variable for variable in _VARIABLE.findall(value) if variable not in environment]
            if missing:
                raise _header_error(f"the environment variable {missing[0]} is not set", "set it")
            value = _VARIABLE.sub(lambda found: environment[found[1]], value).strip()
            if not value.isascii() or not value.isprintable():
                raise _header_error(
                    f"the value of {name.strip()} has characters not allowed in a header", "remove them"
                )
            headers[name.strip()] = value
        return headers


def _header_error(found: str, fix: str) -> InvalidConfigError:
    return InvalidConfigError([Problem("webhook_headers", found, fix)])
