"""torch.export format: PyTorch's program format, for AOTInductor, ExecuTorch and torch.compile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pspnet.errors import ConfigError
from pspnet.exporting.export_network import ExportNetwork, example_images
from pspnet.exporting.formats import Run

PACKAGES: tuple[str, ...] = ()
FILE_NAME = "model.pt2"


def write(network: ExportNetwork, folder: Path) -> str:
    """See pspnet.exporting.formats.Format. ConfigError if this PyTorch has no dynamic sizes."""
    dimension: Any = getattr(torch.export, "Dim", None)
    free = getattr(dimension, "AUTO", None)
    if free is None:
        raise ConfigError(
            f"--format torch_export needs PyTorch 2.5 or newer for dynamic sizes; found {torch.__version__}. "
            "Use torchscript, or a newer PyTorch."
        )
    with torch.no_grad():
        program = torch.export.export(network, (example_images(),), dynamic_shapes=({0: free, 2: free, 3: free},))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that might be on a GPU
        torch.export.save(program, str(folder / FILE_NAME))
    return FILE_NAME


def open_graph(path: Path) -> Run:
    """See pspnet.exporting.formats.Format."""
    program = torch.export.load(str(path)).module()

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            mask, logits = program(torch.from_numpy(images))
        return mask.numpy(), logits.numpy()

    return run
