"""OpenVINO: runs the OpenVINO export on the CPU.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pspnet.artifact.export_record import INPUT_NAME, Export, load_export
from pspnet.inference.runtimes.base import BrokenGraphError, RuntimeMissingError
from pspnet.inference.runtimes.exported import enlarge_logits, import_package, to_planes
from pspnet.system.locations import cache_folder


class OpenVino:
    """An OpenVINO graph that is ready to run. Calls are serialised: each uses all cores for one image.

    Args:
        model_dir: holds exports/openvino-<precision>/.
        precision: "float32" or "int8".
        device: must be a CPU.

    Raises RuntimeMissingError if the package is missing or the device is not a CPU, WeightsError if the export is
    missing or of other weights.
    """

    def __init__(self, model_dir: Path, precision: str, device: torch.device) -> None:
        self.name = "openvino" if precision == "float32" else f"openvino:{precision}"
        if device.type != "cpu":
            raise RuntimeMissingError(
                f"runtime {self.name} runs on CPUs and device is {device.type}; use --device cpu, or the runtime eager."
            )
        openvino = import_package("openvino", self.name, "openvino")
        export = load_export(model_dir, "openvino", precision)
        self._align_corners = export.record.align_corners
        self._lock = threading.Lock()
        self._request = _compile(openvino, export).create_infer_request()

    def masks(self, images: np.ndarray) -> np.ndarray:
        """See Runtime."""
        return self._run(images, "mask")

    def logits(self, images: np.ndarray) -> Tensor:
        """See Runtime."""
        return enlarge_logits(self._run(images, "logits"), images.shape[1], images.shape[2], self._align_corners)

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Run a pass, which selects algorithms for this size."""
        self.masks(np.zeros((batch, height, width, 3), np.uint8))

    def _run(self, images: np.ndarray, output: str) -> np.ndarray:
        planes = to_planes(images)
        with self._lock:
            self._request.infer({INPUT_NAME: planes}, share_inputs=True)
            result: np.ndarray = self._request.get_tensor(output).data.copy()  # the next image overwrites it
        return result


def _compile(openvino: Any, export: Export) -> Any:
    """Compile the graph for this CPU, or load it from OpenVINO's cache."""
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # The default is bfloat16 on CPUs that support it. Int8 layers are not affected.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    folder = cache_folder() / "openvino" / f"{export.record.weights_sha256[:16]}-{export.record.precision}"
    with contextlib.suppress(OSError):  # an unwritable folder only slows down the start
        folder.mkdir(parents=True, exist_ok=True)
        options["CACHE_DIR"] = str(folder)
    try:
        core = openvino.Core()
        return core.compile_model(str(export.path), "CPU", options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BrokenGraphError(
            f"{export.path}: OpenVINO {openvino.__version__} cannot run this graph ({reason}); export it again, or use "
            "the runtime eager."
        ) from error
