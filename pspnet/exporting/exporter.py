"""Export of a model directory: convert, quantise, verify, record. Exports are written atomically."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

from pspnet.artifact.export_record import RECORD_NAME, Export, ExportRecord, hash_weights
from pspnet.artifact.model_directory import Artifact, load_trained
from pspnet.artifact.published import find_model
from pspnet.classes import IGNORE_INDEX
from pspnet.data.inputs import find_images
from pspnet.data.io.images import read_image
from pspnet.errors import DataError
from pspnet.exporting.calibration_set import Calibration, evenly
from pspnet.exporting.export_network import export_network
from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.formats import Run, find_format, find_quantisable_format, versions
from pspnet.exporting.int8 import quantise
from pspnet.exporting.verification import Agreement, compare, scenes
from pspnet.system.atomic_folders import is_free, new_folder

# With less free disk space than this, an error of a library is reported as a full disk.
_LITTLE_SPACE = 2**20

# PyTorch takes seconds per image, so only a few are verified.
CHECKED_IMAGES = 4


def export_model(request: ExportRequest, report: Callable[[str], object] = print) -> Export:
    """Write an export and its record; an older export is replaced.

    Args:
        report: called with each line of progress.

    Raises:
        ConfigError: a missing package.
        WeightsError: an unusable model directory.
        ExportError: the graph fails its verification, or 8 bits lose too much mIoU; then nothing is written.
        DataError: missing or unreadable images, or an output folder that is not an export.
    """
    images = find_images(request.images)
    module = find_quantisable_format(request.format) if request.int8 else find_format(request.format)
    request = request.replace(model_dir=find_model(request.model_dir))
    artifact = load_trained(request.model_dir)
    weights = hash_weights(request.model_dir)
    calibration = _find_calibration(request, artifact)
    with _replacing_export(request.folder) as folder, _full_disk_as_oserror(folder):
        file, int8 = _write(request, artifact, calibration, folder, report)
        agreement, check = _check(images, artifact, calibration, module.open_graph(folder / file))
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


def _find_calibration(request: ExportRequest, artifact: Artifact) -> Calibration | None:
    if request.calibration is None:
        return None
    ignore = request.ignore
    if ignore is None:
        ignore = (artifact.training.get("config") or {}).get("ignore", IGNORE_INDEX)
    return Calibration.find(request.calibration, request.calibration_images, request.scored_images, ignore)


def _write(
    request: ExportRequest,
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
    paths: list[Path], artifact: Artifact, calibration: Calibration | None, run: Run
) -> tuple[Agreement, dict[str, Any]]:
    """Compare with PyTorch on the given images, on the scoring images of int8, or on synthetic scenes."""
    source = "images given"
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
