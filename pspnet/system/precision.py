"""The number format of the forward pass: chosen by what the device has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pspnet.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """Number format of the forward pass. `autocast_dtype` is None for plain float32; `scale_loss` is True for float16,
    whose gradients would underflow without a scaler."""

    name: str
    autocast_dtype: torch.dtype | None
    scale_loss: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The number format itself."""
        return self.autocast_dtype or torch.float32


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto` by device: CPUs and GPUs before Volta (K80) float32, Volta and Turing (V100, T4) float16, newer bfloat16.

    Raises ConfigError for float16 on a CPU.
    """
    if name == "auto":
        name = _fastest(device)
    if name == "float16":
        if device.type == "cpu":
            raise ConfigError("precision = float16 needs a GPU; on a CPU use float32, or bfloat16 where it has AMX.")
        return Precision("float16", torch.float16, scale_loss=True)
    if name == "bfloat16":
        return Precision("bfloat16", torch.bfloat16)
    return Precision("float32", None)


def _fastest(device: torch.device) -> str:
    if device.type == "cpu":
        return "float32"
    major, _ = torch.cuda.get_device_capability(device)
    return "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
