"""Runtime of torch.compile: the fused inference model compiled by inductor, with frozen weights on CPUs.

Compilation takes a minute or more and runs at the first image, unless the size was prepared.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import torch
from torch import Tensor, nn

from pspnet.inference.runtimes.base import RuntimeMissingError
from pspnet.inference.runtimes.eager import EagerRuntime, all_finite
from pspnet.models.fused.folded import build_inference_model, fold
from pspnet.models.pspnet import PSPNet

if TYPE_CHECKING:
    from pspnet.inference.runtimes.cuda_graphs import MaskGraph


class CompiledRuntime(EagerRuntime):
    """See EagerRuntime. `model` is the uncompiled model; `on_prepared` is called after compilation for a size.

    Masks come from compiled code. Logits run uncompiled: a second compilation would double the start-up time.

    Raises RuntimeMissingError if no compiler is installed or PyTorch cannot compile the network here; errors of the
    compilation itself are raised at the first image.
    """

    name = "compile"

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype | None = None,
        on_prepared: Callable[[], None] = lambda: None,
    ) -> None:
        check_compiler(device)
        self._on_prepared = on_prepared
        super().__init__(network, device, dtype)

    def _form(self, network: nn.Module) -> nn.Module:
        if isinstance(network, PSPNet):
            form: nn.Module = fold(network, self.dtype, portable=True)
        else:
            form = build_inference_model(network, self.dtype)
        self._compiled_classes = self._compile(_Classes(form, check_finite=self._spare is not None))
        return form

    def _compile(self, module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        # Freezing converts the weights once to the layout of the convolutions.
        options: dict[str, Any] = {"freezing": True} if self.device.type == "cpu" else {}
        try:
            return torch.compile(module, options=options)
        except RuntimeError as error:  # this PyTorch's compiler does not support this Python
            raise _unavailable(error) from error

    def masks(self, images: np.ndarray) -> np.ndarray:
        """See Runtime."""
        try:
            return super().masks(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _unavailable(error) from error

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Compile for this size, or for all sizes if others were compiled before."""
        try:
            super().prepare(height, width, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _unavailable(error) from error
        self._on_prepared()

    def _capture(self, size: tuple[int, ...]) -> MaskGraph:
        from pspnet.inference.runtimes.cuda_graphs import MaskGraph

        return MaskGraph(self._classes, size, self.device, held=[])  # compiled code caches nothing per size

    def _classes(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._compiled_classes(pixels)


class _Classes(nn.Module):
    """(N, H, W, 3) uint8 -> (N, H, W) uint8, as one module so that up-sampling and arg-max are compiled too.

    `check_finite`: whether to return `all_finite` of the logits too, else None.
    """

    def __init__(self, form: nn.Module, check_finite: bool) -> None:
        super().__init__()
        self.form, self.check_finite = form, check_finite

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        logits: Tensor = self.form(pixels.permute(0, 3, 1, 2))
        return logits.argmax(dim=1).to(torch.uint8), all_finite(logits) if self.check_finite else None


def check_compiler(device: torch.device) -> None:
    """Raise RuntimeMissingError if the compiler that PyTorch's code generator calls is not installed."""
    if device.type == "cpu":
        default = "clang++" if sys.platform == "darwin" else "g++"
        names, kind = [os.environ.get("CXX") or default], "C++"
    else:
        names, kind = [os.environ.get("CC") or "gcc", "clang"], "C"
    if not any(shutil.which(name) for name in names):
        raise RuntimeMissingError(
            f"runtime compile needs a {kind} compiler, and {names[0]} is not installed; install it (Debian, Ubuntu: "
            "apt install g++), or use the runtime eager."
        )


def _unavailable(error: Exception) -> RuntimeMissingError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0][:300] if lines else type(error).__name__
    return RuntimeMissingError(
        f"runtime compile: PyTorch {torch.__version__} cannot compile this network here ({reason}); use the runtime "
        "eager."
    )
