"""ONNX format: written by PyTorch's tracing exporter, opened by ONNX Runtime."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pspnet.artifact.export_record import INPUT_NAME, OUTPUT_NAMES
from pspnet.exporting.export_network import ExportNetwork, example_images
from pspnet.exporting.formats import Run

PACKAGES = ("onnx", "onnxruntime")
FILE_NAME = "model.onnx"

# The newest opset of PyTorch 2.1.
_OPSET = 17
_FREE = {
    "images": {0: "images", 2: "height", 3: "width"},
    "mask": {0: "images", 1: "height", 2: "width"},
    "logits": {0: "images", 2: "rows", 3: "columns"},
}


def write(network: ExportNetwork, folder: Path) -> str:
    """See pspnet.exporting.formats.Format."""
    # Tracing: all supported versions of PyTorch have it, and it takes a tenth of the time of torch.export.
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracer warnings; the verification covers dynamic sizes
        torch.onnx.export(
            network,
            (example_images(),),
            str(folder / FILE_NAME),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes=_FREE,
            opset_version=_OPSET,
            **options,
        )
    return FILE_NAME


def convert(network: ExportNetwork) -> Any:
    """Convert a network to an onnx.ModelProto."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(str(Path(folder) / write(network, Path(folder))))


def save(model: Any, folder: Path) -> str:
    """Write an onnx.ModelProto; returns the name of the file to open."""
    import onnx

    onnx.save(model, str(folder / FILE_NAME))
    return FILE_NAME


def open_graph(path: Path) -> Run:
    """See pspnet.exporting.formats.Format."""
    return _open(str(path))


def run_of(model: Any) -> Run:
    """Open an onnx.ModelProto, ready to run on the CPU."""
    return _open(model.SerializeToString())


def _open(source: str | bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, logits = session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
        return mask, logits

    return run
