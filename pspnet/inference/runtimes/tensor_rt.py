"""The ONNX export in NVIDIA's TensorRT, through ONNX Runtime's provider for it.

TensorRT builds an engine for a graph and a range of sizes, which takes minutes; engines are kept in the cache folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pspnet.artifact.export_record import Export
from pspnet.inference.runtimes.base import RuntimeMissingError
from pspnet.inference.runtimes.onnx_runtime import OnnxRuntime
from pspnet.inference.runtimes.runtime_cache import cache_folder

_PROVIDER = "TensorrtExecutionProvider"


class TensorRtRuntime(OnnxRuntime):
    """See OnnxRuntime. Runs in float16 unless `dtype` is float32.

    Raises RuntimeMissingError where a GPU, ONNX Runtime or its TensorRT provider is missing, WeightsError where there
    is no ONNX export, or one that is not of these weights.
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
    """Where engines are kept: a folder for each model's weights, of which the names of the files tell nothing."""
    folder = cache_folder() / "tensorrt" / export.record.weights_sha256[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # ONNX Runtime makes no more than the last folder of a path
    except OSError:  # a folder that cannot be written costs a slower start and nothing else
        return {}
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }
