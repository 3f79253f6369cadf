"""Settings of an evaluation. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspnet.classes import IGNORE_INDEX, MAX_CLASSES
from pspnet.config.problems import Problem
from pspnet.config.settings import Settings, setting
from pspnet.models.constants import MIN_SIZE

ProtocolName = Literal["whole", "slide", "multiscale", "builtin"]


@dataclass(frozen=True, init=False)
class EvaluationRequest(Settings):
    """A model with its images, or mask files, and how to score them."""

    model_dir: Path | None = setting(
        None, "Model directory, as training writes it; with --predictions it only names the classes.", positional=True
    )
    images: Path | None = setting(
        None, "Folder of JPEG or PNG images; with --predictions only for the pictures of the report."
    )
    annotations: Path = setting(..., "Folder of PNG annotations.")
    output: Path = setting(..., "Folder for metrics.json, per_image.npz, provenance.json and report.html.")
    label_map: Path | None = setting(None, "JSON file: pixel value to class id.")
    ignore: int = setting(IGNORE_INDEX, "Class id that is not scored.", ge=0, le=255)
    protocol: tuple[ProtocolName, ...] = setting(("whole",), "One protocol, or several separated by commas.")
    crop_size: int | None = setting(
        None, "Side of windows and of builtin's crop in pixels; as in training if not given.", ge=MIN_SIZE
    )
    base_size: int | None = setting(
        None, "Long side of slide and multiscale in pixels, 0: the image's own; as in training if not given.", ge=0
    )
    scales: tuple[float, ...] | None = setting(
        None,
        "Scales of multiscale; 0.5, 0.75, 1, 1.25, 1.5 and 1.75 if not given.",
        allowed="numbers greater than 0 and at most 8, separated by commas",
        gt=0,
        le=8,
    )
    flip: bool | None = setting(
        None, "Average windows with their mirror images; multiscale does, slide does not, if not given."
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Device; auto uses a GPU if available.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "float32", "Precision of the network; auto chooses by device."
    )
    batch_size: int = setting(4, "Images or windows in one forward pass.", ge=1)
    workers: Literal["auto"] | int = setting(
        "auto", "Processes that load images.", allowed="auto or a whole number, at least 0", ge=0
    )
    resume: Literal["auto", "never"] = setting("auto", "auto keeps the scores in the output folder, never starts over.")
    save_masks: Path | None = setting(None, "Folder for the masks; a subfolder for each of several protocols.")
    predictions: Path | None = setting(None, "Folder of PNG masks of class ids to score instead of a model.")
    num_classes: int | None = setting(
        None, "Number of classes, for --predictions without a model directory.", ge=1, le=MAX_CLASSES
    )
    details: bool = setting(True, "Also count confidences and boundaries, for the report.")
    report: bool = setting(True, "Write report.html.")

    def conflicts(self) -> Iterator[Problem]:
        if self.predictions is None:
            for key in ("model_dir", "images"):
                if getattr(self, key) is None:
                    yield Problem(key, "missing", "it is required without --predictions", ("predictions",))
        elif self.model_dir is None and self.num_classes is None:
            fix = "--predictions needs it, or the MODEL_DIR that predicted the masks"
            yield Problem("num_classes", "missing", fix, ("predictions", "model_dir"))
