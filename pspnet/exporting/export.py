"""`pspnet.export`: export as a function."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.exporter import export_model


def export(
    model: str | PathLike[str],
    format: str,
    *,
    output: str | PathLike[str] | None = None,
    int8: bool = False,
    calibration: str | PathLike[str] | None = None,
) -> Path:
    """Write a model directory as a graph for other runtimes, check it against PyTorch, and return its folder.

    Args:
        model: model directory.
        format: onnx, openvino, torchscript or torch_export.
        output: folder of the export; None for MODEL/exports/<format>-<precision>, from which Predictor.load reads.
        int8: quantise weights and activations to 8 bits (onnx, openvino); needs `calibration`.
        calibration: data set as in training: images of train calibrate, those of validation score.

    Raises PspnetError for a model, format or data that cannot be used, a missing package, a graph that fails its check
    and an 8-bit graph that costs more than 0.5 points of mIoU; OSError if the folder cannot be written.
    """
    request = ExportRequest(model_dir=model, format=format, output=output, int8=int8, calibration=calibration)
    return export_model(request, lambda _: None).folder
