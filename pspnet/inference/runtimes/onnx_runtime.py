"""ONNX Runtime: runs the ONNX export on the CPU or on a GPU.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pspnet.artifact.export_record import INPUT_NAME, Export, load_export
from pspnet.inference.runtimes.base import BrokenGraphError, RuntimeMissingError
from pspnet.inference.runtimes.exported import enlarge_logits, import_package, to_planes


class OnnxRuntime:
    """An ONNX graph that is ready to run. Its session is thread-safe.

    Args:
        model_dir: holds exports/onnx-<precision>/.
        precision: "float32" or "int8".
        device: a CPU, or a GPU that this ONNX Runtime supports.

    Raises RuntimeMissingError if the package is missing or does not support the device, WeightsError if the export is
    missing or of other weights.
    """

    def __init__(self, model_dir: Path, precision: str, device: torch.device) -> None:
        self.name = self._name(precision)
        onnxruntime = import_package("onnxruntime", self.name, "onnx")
        self._check_provider(onnxruntime, device)
        export = load_export(model_dir, "onnx", precision)
        self._align_corners = export.record.align_corners
        self._session = self._open(onnxruntime, export, self._providers(device, export))

    def masks(self, images: np.ndarray) -> np.ndarray:
        """See Runtime."""
        mask: np.ndarray = self._session.run(["mask"], {INPUT_NAME: to_planes(images)})[0]
        return mask

    def logits(self, images: np.ndarray) -> Tensor:
        """See Runtime."""
        logits = self._session.run(["logits"], {INPUT_NAME: to_planes(images)})[0]
        return enlarge_logits(logits, images.shape[1], images.shape[2], self._align_corners)

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Run a pass, which plans the memory for this size."""
        self.masks(np.zeros((batch, height, width, 3), np.uint8))

    def _name(self, precision: str) -> str:
        return "onnxruntime" if precision == "float32" else f"onnxruntime:{precision}"

    def _check_provider(self, onnxruntime: Any, device: torch.device) -> None:
        if device.type != "cpu" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RuntimeMissingError(
                f"runtime {self.name}: this ONNX Runtime ({onnxruntime.__version__}) has no CUDA; install "
                "onnxruntime-gpu, or use --device cpu or the runtime eager."
            )

    def _providers(self, device: torch.device, export: Export) -> list[Any]:  # noqa: ARG002
        """Execution providers, the preferred one first."""
        if device.type == "cpu":
            return ["CPUExecutionProvider"]
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]

    def _open(self, onnxruntime: Any, export: Export, providers: list[Any]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only; its warnings are about internal nodes
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        try:
            session = onnxruntime.InferenceSession(str(export.path), options, providers=providers)
        except Exception as error:  # its exceptions have no public base class
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise BrokenGraphError(
                f"{export.path}: ONNX Runtime {onnxruntime.__version__} cannot run this graph as {self.name} "
                f"({reason}); export it again, or use the runtime eager."
            ) from error
        # If the libraries of a provider cannot be loaded, ONNX Runtime only logs it and continues without.
        if wanted not in session.get_providers():
            raise RuntimeMissingError(
                f"runtime {self.name}: ONNX Runtime {onnxruntime.__version__} cannot load the libraries of its "
                f"{wanted}; install those that its release notes name, or use the runtime eager."
            )
        return session
