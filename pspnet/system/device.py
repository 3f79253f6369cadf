"""Choice of the device, and settings that depend on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from pspnet.errors import ConfigError
from pspnet.system.cpu import available_cores


def resolve_device(name: str) -> torch.device:
    """The device of a name that PyTorch knows; `auto` is a GPU if there is one. Raises ConfigError for other names."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: not a device that PyTorch knows; use auto, cpu or cuda.") from error


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this process, made current: `cpu`, or the GPU of `local_rank` for `cuda` and for `auto` with a GPU.

    Raises ConfigError for `cuda` without a GPU and for unknown names.
    """
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device = {name}: this PyTorch ({torch.__version__}) sees no GPU; use --device auto or --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def has_fast_bfloat16(device: torch.device) -> bool:
    """True for a CPU with AMX, where bfloat16 is several times faster; without AMX it is slower than float32."""
    supported: Any = getattr(getattr(torch, "cpu", None), "_is_amx_tile_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def choose_workers(setting: str | int, device: torch.device, local_processes: int = 1) -> int:
    """Number of loader processes: the setting, or for `auto` the available cores per local process.

    Training on a CPU keeps two cores for itself; with a GPU none are kept, because the main process mostly waits.
    """
    if isinstance(setting, int):
        return setting
    cores = available_cores() // max(1, local_processes)
    return min(16, cores) if device.type == "cuda" else max(0, min(4, cores - 2))


def make_deterministic() -> None:
    """Use deterministic algorithms; GPU operations without one warn instead of raising."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 convolutions and matrix products on Ampere and newer GPUs."""
    # Not torch 2.9's fp32_precision: once it is set, the older settings cannot be read, and torch.compile of 2.9 and
    # 2.10 reads them.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def tuned_convolutions(enabled: bool) -> Iterator[None]:
    """Context manager that enables cuDNN's autotuning per input size; worthwhile if sizes repeat."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def describe_memory(device: torch.device) -> str:
    """Description of the device's memory for a message: "the 14.6 GiB of Tesla T4"."""
    if device.type != "cuda":
        return "the memory"
    properties = torch.cuda.get_device_properties(device)
    return f"the {properties.total_memory / 2**30:.1f} GiB of {properties.name}"


def describe(device: torch.device) -> str:
    """Description of the device for the first log line."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads"
