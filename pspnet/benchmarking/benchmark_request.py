"""Settings of a benchmark. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Tuple

from pspnet.config.settings import Settings, setting
from pspnet.inference.runtimes.base import AUTO, NAMES, RuntimeName
from pspnet.models.constants import MIN_SIZE

Size = Tuple[int, int]
"""Height and width in pixels."""
RUNTIMES = tuple(name for name in NAMES if name != AUTO)


def _without_auto(names: tuple[str, ...]) -> tuple[str, ...]:
    if AUTO in names:
        raise ValueError("auto is no runtime")
    return names


@dataclass(frozen=True, init=False)
class BenchmarkRequest(Settings):
    """A model, the runtimes to time and the images."""

    model_dir: Path | None = setting(
        None, "Trained model; a full-size PSPNet with 21 classes and random weights if not given.", positional=True
    )
    size: Size | None = setting(
        None,
        "Size of the images; that of --image, or 360x480, if not given.",
        allowed=f"HEIGHTxWIDTH in pixels, such as 360x480, each at least {MIN_SIZE}",
        ge=MIN_SIZE,
        le=99_999,
    )
    image: Path | None = setting(None, "Image to predict; a generated scene if not given.")
    runtimes: tuple[RuntimeName, ...] | None = setting(
        None,
        "Runtimes to time; all that can run here if not given. The choice of auto is always reported.",
        allowed=f"one or more of {', '.join(RUNTIMES)}",
        check=_without_auto,
        repeated=True,
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Device; auto uses a GPU if available.")
    batch: int = setting(1, "Images per forward pass.", ge=1)
    rounds: int = setting(7, "Number of times that each runtime is timed.", ge=1)
    threads: int | None = setting(None, "CPU threads; as PyTorch chooses if not given.", ge=1)
    output: Path | None = setting(None, "JSON file for the figures, the machine and the versions.")
