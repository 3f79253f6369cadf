"""From a model directory to an export of it: convert, quantise, check, record. It appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from pspnet.artifact.export_record import EXPORTS_NAME, RECORD_NAME, Export, ExportRecord, folder_name, hash_weights
from pspnet.artifact.model_directory import Artifact, load_trained
from pspnet.classes import IGNORE_INDEX
from pspnet.data.io.images import read_image
from pspnet.errors import DataError
from pspnet.exporting.calibration_set import Calibration, evenly
from pspnet.exporting.export_network import export_network
from pspnet.exporting.formats import Run, find_format, find_quantisable_format, versions
from pspnet.exporting.int8 import quantise
from pspnet.exporting.verification import Agreement, compare, scenes
from pspnet.system.atomic_folders import is_free, new_folder

# With less than this left, a library's error is put down to the full disk.
_LITTLE_SPACE = 2**20

# PyTorch takes seconds for each image, so a few have to do.
CHECKED_IMAGES = 4


@dataclass(frozen=True)
class Request:
    """What is to be exported, and how.

    Attributes:
        model_dir: what training wrote.
        format: of pspnet.artifact.export_record.FORMATS.
        output: folder of the export; None for MODEL_DIR/exports/<format>-<precision>.
        images: image files to check on; none for those of the calibration, or generated scenes.
        calibration: a data set, which makes it an 8-bit export.
        calibration_images, scored_images: how many of its images to calibrate on and to score with, at most.
        ignore_index: class id that is not scored; None for the one of the training.
        allow_loss: whether 8 bits may cost more than they should.
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

    @property
    def precision(self) -> str:
        return "float32" if self.calibration is None else "int8"

    @property
    def folder(self) -> Path:
        name = folder_name(self.format, self.precision)
        return self.model_dir / EXPORTS_NAME / name if self.output is None else self.output


def export_model(request: Request, report: Callable[[str], object] = print) -> Export:
    """Write an export and its record, in the place of an older one.

    Args:
        say: told what was found, line by line.

    Raises:
        ConfigError: a format that has no 8-bit form, or a package that is missing.
        WeightsError: the model directory cannot be used.
        ExportError: the graph fails its check, or 8 bits cost too much; then nothing is kept.
        DataError: images that cannot be read, or an output that is something else than an export.
    """
    module = find_format(request.format) if request.calibration is None else find_quantisable_format(request.format)
    artifact = load_trained(request.model_dir)
    weights = hash_weights(request.model_dir)
    calibration = _find_calibration(request, artifact)
    with _replacing_export(request.folder) as folder, _full_disk_told(folder):
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
    """Write the graph; returns the name of its file and what quantisation found."""
    network = export_network(artifact.model)
    if calibration is None:
        return find_format(request.format).write(network, folder), {}
    module, classes = find_quantisable_format(request.format), len(artifact.class_names)
    quantised = quantise(module.convert(network), module.run_of, calibration, classes, request.allow_loss, report)
    return module.save(quantised.model, folder), quantised.found


def _check(
    request: Request, artifact: Artifact, calibration: Calibration | None, run: Run
) -> tuple[Agreement, dict[str, Any]]:
    """Compare on the images that were given, on those that int8 was scored with, or on generated scenes."""
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
    """A temporary folder that takes the place of an export, of an empty folder or of nothing when the block ends well.

    Raises DataError where something else is there, or the place cannot be written.
    """
    output = Path(os.path.abspath(output))  # "." has no name, and so no neighbours
    is_export = (output / RECORD_NAME).is_file()
    if not is_export and not is_free(output):
        raise DataError(
            f"--output: {output} holds something else than an export; give another folder, or delete what is there."
        )
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
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Turn the RuntimeError by which PyTorch and OpenVINO report a full disk into the OSError that it is."""
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(folder).free < _LITTLE_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
