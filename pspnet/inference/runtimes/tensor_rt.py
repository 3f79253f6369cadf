"""TensorRT: runs the ONNX export through ONNX Runtime's TensorRT provider.

TensorRT builds an engine for a graph and a range of sizes, which takes minutes; engines are cached on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pspnet.artifact.export_record import Export
from pspnet.inference.runtimes.base import RuntimeMissingError
from pspnet.inference.runtimes.onnx_runtime import OnnxRuntime
from pspnet.system.locations import cache_folder

_PROVIDER = "TensorrtExecutionProvider"


class TensorRtRuntime(OnnxRuntime):
    """See OnnxRuntime. Runs in float16 unless `dtype` is float32.

    Raises RuntimeMissingError if a GPU, ONNX Runtime or its TensorRT provider is missing, WeightsError if the ONNX
    export is missing or of other weights.
    """

    def __init__(self, model_dir: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._half = dtype != torch.float32
        if device.type != "cuda":
            raise RuntimeMissingError("runtime tensorrt needs an NVIDIA GPU; use --device cuda, or the runtime eager.")
        super().__init__(model_dir, "float32", device)

    def _name(self, precision: str) -> str:  # noqa: ARG002
        return "tensorrt"

    def _check_provider(self, onnxruntime: Any, device: torch.device) -> None:  # noqa: ARG002
        if _PROVIDER not in onnxruntime.get_available_providers():
            raise RuntimeMissingError(
                f"runtime tensorrt: this ONNX Runtime ({onnxruntime.__version__}) has no TensorRT; install "
                "onnxruntime-gpu and the TensorRT that its release notes name, or use the runtime eager."
            )

    def _providers(self, device: torch.device, export: Export) -> list[Any]:
        options = {"device_id": device.index or 0, "trt_fp16_enable": self._half, **_cache_options(export)}
        cuda = ("CUDAExecutionProvider", {"device_id": device.index or 0})
        return [(_PROVIDER, options), cuda, "CPUExecutionProvider"]


def _cache_options(export: Export) -> dict[str, Any]:
    """Engine cache options: one folder per model's weights, since the file names do not identify them."""
    folder = cache_folder() / "tensorrt" / export.record.weights_sha256[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # ONNX Runtime creates only the last folder of a path
    except OSError:  # an unwritable folder only slows down the start
        return {}
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }
