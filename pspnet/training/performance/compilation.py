"""torch.compile of the network for one batch size, with a fallback to the plain model."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor, nn

from pspnet.errors import ConfigError, is_out_of_memory

_LEAST_TORCH = (2, 1)
_LEAST_CAPABILITY = (7, 0)


def unsupported_reason(device: torch.device) -> str | None:
    """Return the reason why torch.compile cannot work here as a clause; None if it should work."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < _LEAST_TORCH or not hasattr(torch, "compile"):
        return f"it needs PyTorch 2.1 or newer, and this is {torch.__version__}"
    if device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return "it needs a GPU of compute capability 7.0 or higher, and this one has {}.{}".format(*capability)
    if importlib.util.find_spec("triton") is None:
        return "it needs the package triton on a GPU"
    return None


def should_compile(setting: str | bool, device: torch.device, deterministic: bool = False) -> bool:
    """Evaluate the setting `compile`; auto compiles on supported GPUs unless `deterministic` is set.

    Raises ConfigError if compilation is requested but cannot work.
    """
    if setting == "auto":
        return device.type == "cuda" and not deterministic and unsupported_reason(device) is None
    reason = unsupported_reason(device) if setting else None
    if reason is not None:
        raise ConfigError(f"compile = True cannot work here: {reason}. Use --compile False or auto.")
    return bool(setting)


@contextlib.contextmanager
def _eager_backward_compilation() -> Iterator[None]:
    """Compile the backward pass together with the forward pass, so that both fail in the same place.

    Versions of PyTorch without this option compile it on the first backward pass.
    """
    try:
        from torch._functorch import config
    except ImportError:
        yield
        return
    name = "force_non_lazy_backward_lowering"
    if not hasattr(config, name):
        yield
        return
    before = getattr(config, name)
    setattr(config, name, True)
    try:
        yield
    finally:
        setattr(config, name, before)


class CompiledModel(nn.Module):
    """Model compiled for one batch size; other batches, such as an epoch's last, use the plain model.

    So it is compiled once per run. Both forms share weights and statistics.

    Args:
        model: the network, bare or wrapped for data parallelism.
        batch_size: number of images of the batches to compile for.
        required: whether a failure to compile ends the run; otherwise the plain model is used.
        log: receives a note about the failure.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, required: bool = True, log: Callable[[str], None] = print
    ) -> None:
        super().__init__()
        self.original = model
        self.batch_size = batch_size
        self.required = required
        self._log = log
        # In a tuple, so that the compiled form is not registered as a second submodule with the same parameters.
        self._compiled: tuple[Any] | None = (torch.compile(model, dynamic=False),)
        self._succeeded = False

    def forward(self, images: Tensor) -> Any:
        """Run the model on (N, 3, H, W) images; ConfigError if compilation fails and is required."""
        if self._compiled is None or images.shape[0] != self.batch_size:
            return self.original(images)
        if self._succeeded:
            return self._compiled[0](images)
        try:
            with _eager_backward_compilation():
                outputs = self._compiled[0](images)
        except Exception as error:  # compilers raise all kinds of exceptions
            if is_out_of_memory(error):
                raise
            self._fall_back(error)
            return self.original(images)
        self._succeeded = True
        return outputs

    def _fall_back(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", error)  # PyTorch's wrapper has little information
        lines = [line for line in str(cause).splitlines() if line.strip()]
        reason = f"{type(cause).__name__}: {lines[0].strip() if lines else 'no details'}"
        if self.required:
            raise ConfigError(
                f"compile = True: PyTorch {torch.__version__} could not compile the network ({reason}). Use --compile "
                "False, or auto, which falls back to the plain network."
            ) from error
        self._compiled = None
        self._log(f"Note: the network could not be compiled ({reason}); training continues without compilation.")
