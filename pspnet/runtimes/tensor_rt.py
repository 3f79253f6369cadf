"""The ONNX export in NVIDIA's TensorRT, through ONNX Runtime's provider for it.

TensorRT builds an engine for a graph and a range of sizes, which takes minutes; engines are kept in the cache folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pspnet.runtimes.base import RuntimeMissingError
from pspnet.runtimes.cache import cache_folder
from pspnet.runtimes.onnx_runtime import OnnxRuntime

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

    def _providers(self, onnxruntime: Any, device: torch.device) -> list[Any]:
        if _PROVIDER not in onnxruntime.get_available_providers():
            raise RuntimeMissingError(
                f"runtime tensorrt: this ONNX Runtime ({onnxruntime.__version__}) has no TensorRT; install "
                "onnxruntime-gpu and the TensorRT that its release notes name, or use the runtime eager."
            )
        folder = str(cache_folder() / "tensorrt")
        options = {
            "device_id": device.index or 0,
            "trt_fp16_enable": self._half,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
        }
        cuda = ("CUDAExecutionProvider", {"device_id": device.index or 0})
        return [(_PROVIDER, options), cuda, "CPUExecutionProvider"]
