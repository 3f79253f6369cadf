"""torch.compile around the network: where it can work, for one batch size, and what happens where it fails."""

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


def obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, as a clause; None where nothing is known against it."""
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


def compile_wanted(setting: str | bool, device: torch.device, deterministic: bool = False) -> bool:
    """The setting `compile`: auto compiles on GPUs that can, unless results are to repeat bit by bit.

    Raises ConfigError where it is asked for and cannot work.
    """
    if setting == "auto":
        return device.type == "cuda" and not deterministic and obstacle(device) is None
    reason = obstacle(device) if setting else None
    if reason is not None:
        raise ConfigError(f"compile = True cannot work here: {reason}. Use --compile False or auto.")
    return bool(setting)


@contextlib.contextmanager
def _backward_compiled_at_once() -> Iterator[None]:
    """Compile the backward pass with the forward pass, so that a failure of either is met at the same place.

    Versions of PyTorch that cannot do so compile it when it is first run.
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
    """A model that is compiled for batches of one size; smaller ones, as an epoch's last, go through the model itself.

    So it is compiled once in a run. Both forms have the same weights and statistics.

    Args:
        model: the network, bare or wrapped for data parallelism.
        batch_size: images of the batches that are worth it.
        required: whether a failure to compile ends the run; otherwise it goes on with the model itself.
        tell: takes the sentence that says so.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, required: bool = True, tell: Callable[[str], None] = print
    ) -> None:
        super().__init__()
        self.original = model
        self.batch_size = batch_size
        self.required = required
        self._tell = tell
        # Held in a tuple, so that the compiled form is no second submodule with the same parameters.
        self._compiled: tuple[Any] | None = (torch.compile(model, dynamic=False),)
        self._proven = False

    def forward(self, images: Tensor) -> Any:
        """What the model returns for (N, 3, H, W) images. ConfigError where compiling fails and was asked for."""
        if self._compiled is None or images.shape[0] != self.batch_size:
            return self.original(images)
        if self._proven:
            return self._compiled[0](images)
        try:
            with _backward_compiled_at_once():
                outputs = self._compiled[0](images)
        except Exception as error:  # a compiler can fail in any way
            if is_out_of_memory(error):
                raise
            self._give_up(error)
            return self.original(images)
        self._proven = True
        return outputs

    def _give_up(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", error)  # PyTorch's own error says little more than "raised"
        lines = [line for line in str(cause).splitlines() if line.strip()]
        said = f"{type(cause).__name__}: {lines[0].strip() if lines else 'no details'}"
        if self.required:
            raise ConfigError(
                f"compile = True: PyTorch {torch.__version__} could not compile the network ({said}). Use --compile "
                "False, or auto, which then goes on without."
            ) from error
        self._compiled = None
        self._tell(f"Note: the network could not be compiled ({said}); training goes on without.")
