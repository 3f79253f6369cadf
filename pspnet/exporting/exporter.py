"""Export of a model directory: convert, quantise, verify, record. Exports are written atomically."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from pspnet.artifact.export_record import RECORD_NAME, Export, ExportRecord, folder_name, hash_weights
from pspnet.artifact.file_names import EXPORTS_NAME
from pspnet.artifact.model_directory import Artifact, load_trained
from pspnet.artifact.published import find_model
from pspnet.classes import IGNORE_INDEX
from pspnet.data.io.images import read_image
from pspnet.errors import ConfigError, DataError
from pspnet.exporting.calibration_set import Calibration, evenly
from pspnet.exporting.export_network import export_network
from pspnet.exporting.formats import Run, find_format, find_quantisable_format, versions
from pspnet.exporting.int8 import quantise
from pspnet.exporting.verification import Agreement, compare, scenes
from pspnet.system.atomic_folders import is_free, new_folder

# With less free disk space than this, an error of a library is reported as a full disk.
_LITTLE_SPACE = 2**20

# PyTorch takes seconds per image, so only a few are verified.
CHECKED_IMAGES = 4


@dataclass(frozen=True)
class Request:
    """Settings of an export; ConfigError for counts below 1.

    Attributes:
        model_dir: output of training.
        format: one of pspnet.artifact.export_record.FORMATS.
        output: folder of the export; None for MODEL_DIR/exports/<format>-<precision>.
        images: image files for the verification; by default those of the calibration, or synthetic scenes.
        calibration: a data set; it makes an 8-bit export.
        calibration_images, scored_images: maximum number of its images for calibration and for scoring.
        ignore_index: class id that is not scored; None for that of the training.
        allow_loss: keep an 8-bit graph that loses more mIoU than the bound.
    """

    model_dir: Path
    format: str
    output: Path | None = None
    images: list[Path] = field(default_factory=list)
    calibration: Path | None = None
    calibration_images: int = 64
    scored_images: int = 100
    ignore_index: int | None = None
    allow_loss: bool = False

    def __post_init__(self) -> None:
        for name in ("calibration_images", "scored_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}: found {getattr(self, name)}; expected 1 or more.")

    @property
    def precision(self) -> str:
        return "float32" if self.calibration is None else "int8"

    @property
    def folder(self) -> Path:
        name = folder_name(self.format, self.precision)
        return self.model_dir / EXPORTS_NAME / name if self.output is None else self.output


def export_model(request: Request, report: Callable[[str], object] = print) -> Export:
    """Write an export and its record; an older export is replaced.

    Args:
        report: called with each line of progress.

    Raises:
        ConfigError: a format without an 8-bit form, or a missing package.
        WeightsError: an unusable model directory.
        ExportError: the graph fails its verification, or 8 bits lose too much mIoU; then nothing is written.
        DataError: unreadable images, or an output folder that is not an export.
    """
    module = find_format(request.format) if request.calibration is None else find_quantisable_format(request.format)
    request = replace(request, model_dir=find_model(request.model_dir))
    artifact = load_trained(request.model_dir)
    weights = hash_weights(request.model_dir)
    calibration = _find_calibration(request, artifact)
    with _replacing_export(request.folder) as folder, _full_disk_as_oserror(folder):
        file, int8 = _write(request, artifact, calibration, folder, report)
        agreement, check = _check(request, artifact, calibration, module.open_graph(folder / file))
        if calibration is None:
            agreement.require(f"{request.format} export")
        report(_describe(agreement, check["source"]))
        record = ExportRecord(
            format=request.format,
            precision=request.precision,
            file=file,
            weights_sha256=weights,
            align_corners=artifact.model.align_corners,
            num_classes=len(artifact.class_names),
            versions=versions((*module.PACKAGES, *(("nncf",) if int8 else ()))),
            check=check,
            int8=int8,
            files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        )
        record.write(folder)
    return Export(request.folder, record)


def _find_calibration(request: Request, artifact: Artifact) -> Calibration | None:
    if request.calibration is None:
        return None
    ignore = request.ignore_index
    if ignore is None:
        ignore = (artifact.training.get("config") or {}).get("ignore", IGNORE_INDEX)
    return Calibration.find(request.calibration, request.calibration_images, request.scored_images, ignore)


def _write(
    request: Request,
    artifact: Artifact,
    calibration: Calibration | None,
    folder: Path,
    report: Callable[[str], object],
) -> tuple[str, dict[str, Any]]:
    """Write the graph; returns the name of its file and the record of the quantisation."""
    network = export_network(artifact.model)
    if calibration is None:
        return find_format(request.format).write(network, folder), {}
    module, classes = find_quantisable_format(request.format), len(artifact.class_names)
    quantised = quantise(module.convert(network), module.run_of, calibration, classes, request.allow_loss, report)
    return module.save(quantised.model, folder), quantised.found


def _check(
    request: Request, artifact: Artifact, calibration: Calibration | None, run: Run
) -> tuple[Agreement, dict[str, Any]]:
    """Compare with PyTorch on the given images, on the scoring images of int8, or on synthetic scenes."""
    paths, source = request.images, "images given"
    if not paths and calibration is not None:
        paths, source = [pair.image for pair in calibration.scored], "images of the calibration data"
    images = [read_image(path) for path in evenly(paths, CHECKED_IMAGES)]
    if not images:
        images, source = scenes(), "generated scenes"
    agreement = compare(run, artifact.model, images)
    return agreement, agreement.to_json(source, len(images), limited=calibration is None)


def _describe(agreement: Agreement, source: str) -> str:
    sizes = ", ".join(f"{count}x{height}x{width}" for count, height, width in agreement.cases)
    return (
        f"Compared with PyTorch on {source} ({sizes}): logits differ by at most {agreement.logits_difference:.1e} of "
        f"their size, {100 * agreement.mask_agreement:.3f} % of the mask pixels agree."
    )


@contextmanager
def _replacing_export(output: Path) -> Iterator[Path]:
    """A temporary folder that replaces an export or an empty or missing folder when the block succeeds.

    Raises DataError if the output is something else or cannot be written.
    """
    output = Path(os.path.abspath(output))  # "." has no name for a sibling
    is_export = (output / RECORD_NAME).is_file()
    if not is_export and not is_free(output):
        raise DataError(f"--output: {output} is not an export; use another folder, or delete its contents.")
    old = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        with new_folder(output) as folder:
            yield folder
            if is_export:
                output.rename(old)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _full_disk_as_oserror(folder: Path) -> Iterator[None]:
    """Convert the RuntimeError by which PyTorch and OpenVINO report a full disk into an OSError."""
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(folder).free < _LITTLE_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
