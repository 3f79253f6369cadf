"""Factory of runtimes by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pspnet.artifact.export_record import RECORD_NAME, folder_name
from pspnet.artifact.file_names import EXPORTS_NAME
from pspnet.errors import ConfigError
from pspnet.inference.runtimes.base import AUTO, Runtime, RuntimeMissingError, check_name
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.inference.runtimes.trials import ChoiceCache, describe_machine, digest
from pspnet.system.locations import cache_folder

# Candidates of `auto` if their export and package exist: name -> format, package.
_EXPORTED = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("openvino", "openvino")}


@dataclass(frozen=True)
class Source:
    """The model that runtimes run.

    network: returns the network in float32 and evaluation mode; called only by the PyTorch runtimes.
    dtype: None for the fastest of the device.
    model_dir: the model directory with the exports; None for a network in memory.
    """

    network: Callable[[], nn.Module]
    device: torch.device
    dtype: torch.dtype | None = None
    model_dir: Path | None = None


def open_runtime(name: str, source: Source) -> Runtime:
    """Open a runtime by name (see pspnet.inference.runtimes.base.NAMES).

    Raises ConfigError for an unknown name or an unsupported dtype, RuntimeMissingError for a runtime that cannot run
    here, WeightsError for an export that is missing, damaged or of other weights.
    """
    check_name(name)
    if name == AUTO:
        return _open_automatic(source)
    if name == "eager":
        return EagerRuntime(source.network(), source.device, source.dtype)
    if name == "compile":
        return _open_compiled(source.network(), source, _cache(source.device))
    return _open_export(name, source)


def _open_compiled(network: nn.Module, source: Source, cache: ChoiceCache) -> Runtime:
    from pspnet.inference.runtimes.compiled import CompiledRuntime

    model = _describe(network)
    return CompiledRuntime(network, source.device, source.dtype, on_prepared=lambda: cache.keep_compiled(model))


def _open_export(name: str, source: Source) -> Runtime:
    if source.model_dir is None:
        raise ConfigError(f"runtime {name} needs an export in a model directory; load the model from one.")
    kind, _, precision = name.partition(":")
    format = str(source.dtype).replace("torch.", "")
    if kind == "tensorrt" and source.dtype not in (None, torch.float16, torch.float32):
        raise ConfigError(f"runtime tensorrt runs in float16 or float32; {format} needs the runtime eager or compile.")
    if kind != "tensorrt" and source.dtype not in (None, torch.float32):
        raise ConfigError(f"runtime {name} runs an export unchanged; {format} needs the runtime eager or compile.")
    if kind == "openvino":
        from pspnet.inference.runtimes.open_vino import OpenVino

        return OpenVino(source.model_dir, precision or "float32", source.device)
    if kind == "onnxruntime":
        from pspnet.inference.runtimes.onnx_runtime import OnnxRuntime

        return OnnxRuntime(source.model_dir, precision or "float32", source.device)
    from pspnet.inference.runtimes.tensor_rt import TensorRtRuntime

    return TensorRtRuntime(source.model_dir, source.device, source.dtype)


def _open_automatic(source: Source) -> Runtime:
    """The automatic runtime; eager itself if there is no other candidate, which avoids the overhead."""
    network = source.network()
    openers = {name: _opener(name, source) for name in _exported_runtimes(source)}
    cache = _cache(source.device)
    model = _describe(network) if openers or source.device.type == "cuda" or cache.path.is_file() else ""
    if (source.device.type == "cuda" or (model and cache.has_compiled(model))) and _has_compiler(source.device):
        openers["compile"] = lambda: _open_compiled(network, source, cache)
    eager = EagerRuntime(network, source.device, source.dtype)
    if not openers:
        return eager
    from pspnet.inference.runtimes.automatic import AutomaticRuntime

    key = digest(model, str(eager.dtype), sorted(openers))
    return AutomaticRuntime(eager, openers, slow={"compile"}, cache=cache, model=key)


def _opener(name: str, source: Source) -> Callable[[], Runtime]:
    return lambda: _open_export(name, source)


def _exported_runtimes(source: Source) -> list[str]:
    """Candidates for the device whose float32 export and package exist; they may still fail when opened."""
    if source.model_dir is None or source.dtype not in (None, torch.float32):
        return []
    exports = source.model_dir / EXPORTS_NAME
    return [
        name
        for name, (kind, package) in _EXPORTED.items()
        if (source.device.type == "cpu" or name != "openvino")
        and (exports / folder_name(kind, "float32") / RECORD_NAME).is_file()
        and importlib.util.find_spec(package) is not None
    ]


def _has_compiler(device: torch.device) -> bool:
    """Return True if the compilers of `compile` are installed, by a quick check."""
    from pspnet.inference.runtimes.compiled import check_compiler

    try:
        check_compiler(device)
    except RuntimeMissingError:
        return False
    return device.type != "cuda" or importlib.util.find_spec("triton") is not None


def _cache(device: torch.device) -> ChoiceCache:
    return ChoiceCache(cache_folder(), describe_machine(device))


def _describe(network: nn.Module) -> str:
    """Cache key of the architecture: its modules with all sizes, strides and dilations."""
    return digest(repr(network))
