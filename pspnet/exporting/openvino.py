"""OpenVINO format: converted from PyTorch directly, stored as XML and weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pspnet.artifact.export_record import INPUT_NAME, OUTPUT_NAMES
from pspnet.exporting.export_network import ExportNetwork, example_images
from pspnet.exporting.formats import Run
from pspnet.inference.runtimes.openvino_telemetry import silence_openvino

silence_openvino()

PACKAGES = ("openvino",)
FILE_NAME = "model.xml"

# By default OpenVINO runs float32 graphs in bfloat16 on CPUs that support it.
COMPILE_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}


def write(network: ExportNetwork, folder: Path) -> str:
    """See pspnet.exporting.formats.Format."""
    return save(convert(network), folder)


def convert(network: ExportNetwork) -> Any:
    """Convert a network to an openvino.Model with dynamic sizes and named input and outputs."""
    import openvino

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracer warnings; the verification covers dynamic sizes
        model = openvino.convert_model(network, example_input=example_images())
    model.reshape([-1, 3, -1, -1])
    for port, name in zip((*model.inputs, *model.outputs), (INPUT_NAME, *OUTPUT_NAMES)):
        port.get_tensor().set_names({name})
    return model


def save(model: Any, folder: Path) -> str:
    """Write model.xml and model.bin without compressing the weights; returns the name of the file to open."""
    import openvino

    openvino.save_model(model, str(folder / FILE_NAME), compress_to_fp16=False)
    return FILE_NAME


def open_graph(path: Path) -> Run:
    """See pspnet.exporting.formats.Format."""
    import openvino

    return run_of(openvino.Core().read_model(str(path)))


def run_of(model: Any) -> Run:
    """Open an openvino.Model, ready to run on the CPU."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", COMPILE_OPTIONS)

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        results = compiled({INPUT_NAME: images})
        mask, logits = (results[name] for name in OUTPUT_NAMES)
        return mask, logits

    return run
