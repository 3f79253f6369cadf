"""TorchScript format: a trace of the network, for C++ and for programs without this project's Python code."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from pspnet.exporting.export_network import ExportNetwork, example_images
from pspnet.exporting.formats import Run

PACKAGES: tuple[str, ...] = ()
FILE_NAME = "model.ts"


def write(network: ExportNetwork, folder: Path) -> str:
    """See pspnet.exporting.formats.Format."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracer warnings; the verification covers dynamic sizes
        traced = torch.jit.trace(network, example_images(), check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), str(folder / FILE_NAME))
    return FILE_NAME


def open_graph(path: Path) -> Run:
    """See pspnet.exporting.formats.Format. TorchScript files contain code: open only trusted files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.load(str(path), map_location="cpu")

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            mask, logits = program(torch.from_numpy(images))
        return mask.numpy(), logits.numpy()

    return run
