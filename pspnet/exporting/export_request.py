"""Settings of an export. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pspnet.artifact.export_record import Format, folder_name
from pspnet.artifact.file_names import EXPORTS_NAME
from pspnet.config.problems import Problem
from pspnet.config.settings import Settings, setting

QUANTISABLE = ("onnx", "openvino")


@dataclass(frozen=True, init=False)
class ExportRequest(Settings):
    """A model directory and the format of its export."""

    model_dir: Path = setting(..., "Model directory, as training writes it.", positional=True)
    format: Format = setting(..., "Format of the graph.")
    output: Path | None = setting(None, "Folder of the export; MODEL_DIR/exports/<format>-<precision> if not given.")
    images: tuple[str, ...] = setting(
        (),
        "Images for the verification; by default those of the calibration, or generated scenes.",
        allowed="files, folders or patterns",
        repeated=True,
    )
    int8: bool = setting(False, "8-bit weights and activations (onnx, openvino).")
    calibration: Path | None = setting(
        None, "For --int8: a data set as in training; images of train calibrate, those of validation score."
    )
    calibration_images: int = setting(64, "Maximum number of calibration images.", ge=1)
    scored_images: int = setting(100, "Maximum number of scored images.", ge=1)
    ignore: int | None = setting(
        None, "For --int8: class id that is not scored; as in training, or 255, if not given.", ge=0, le=255
    )
    allow_loss: bool = setting(False, "For --int8: keep a graph that loses more than 0.5 points of mIoU.")

    def conflicts(self) -> Iterator[Problem]:
        if self.int8 and self.format not in (*QUANTISABLE, None):
            fix = f"use the format {' or '.join(QUANTISABLE)}, or omit int8"
            yield Problem("int8", f"{self.format} has no 8-bit form here", fix, ("format",))
        if self.int8 and self.calibration is None:
            fix = "int8 needs a data set: its images set the 8-bit ranges, its annotations measure the loss"
            yield Problem("calibration", "missing", fix, ("int8",))
        given = {"calibration": self.calibration is not None, "ignore": self.ignore is not None}
        for key, is_given in {**given, "allow_loss": self.allow_loss}.items():
            if is_given and not self.int8:
                yield Problem(key, "is for 8-bit graphs", "add int8, or omit it", ("int8",))

    @property
    def precision(self) -> str:
        return "int8" if self.int8 else "float32"

    @property
    def folder(self) -> Path:
        name = folder_name(self.format, self.precision)
        return self.model_dir / EXPORTS_NAME / name if self.output is None else self.output
