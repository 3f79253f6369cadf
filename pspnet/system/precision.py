"""Precision of the forward pass, chosen by the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pspnet.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """Precision of the forward pass. `autocast_dtype` is None for plain float32; `scale_loss` is True for float16,
    whose gradients would underflow without a scaler."""

    name: str
    autocast_dtype: torch.dtype | None
    scale_loss: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the forward pass."""
        return self.autocast_dtype or torch.float32


def choose_precision(name: str, device: torch.device) -> Precision:
    """The named precision; `auto` is float32 on CPUs and before Volta, float16 on Volta and Turing, else bfloat16.

    Raises ConfigError for float16 on a CPU.
    """
    if name == "auto":
        name = _fastest(device)
    if name == "float16":
        if device.type == "cpu":
            raise ConfigError("precision = float16 needs a GPU; on a CPU use float32, or bfloat16 if it has AMX.")
        return Precision("float16", torch.float16, scale_loss=True)
    if name == "bfloat16":
        return Precision("bfloat16", torch.bfloat16)
    return Precision("float32", None)


def _fastest(device: torch.device) -> str:
    if device.type == "cpu":
        return "float32"
    major, _ = torch.cuda.get_device_capability(device)
    return "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
