"""Activation checkpointing: activations of the deepest layers are recomputed instead of stored.

T. Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pspnet.errors import ConfigError
from pspnet.system.precision import Precision

LAYERS = ("layer3", "layer4")

_LEAST_TORCH_FOR_BFLOAT16 = (2, 0)


def check_precision_supported(precision: Precision) -> None:
    """Raise ConfigError if this PyTorch would repeat the forward pass in another precision."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if precision.autocast_dtype is torch.bfloat16 and version < _LEAST_TORCH_FOR_BFLOAT16:
        raise ConfigError(
            f"gradient_checkpointing: found True with precision bfloat16 and PyTorch {torch.__version__}, which would "
            "repeat the forward pass in another precision; use --precision float32, or PyTorch 2.0 or newer."
        )


def checkpoint_activations(network: nn.Module) -> int:
    """Make each block of the backbone's layer3 and layer4 store only its input, in place; return the number of blocks.

    The state dict does not change. Outputs, gradients and batch-norm statistics equal those of the plain network.
    """
    backbone: Any = network.backbone
    blocks = [block for name in LAYERS for block in getattr(backbone, name)]
    for block in blocks:
        block.__class__ = _checkpointed(type(block))
    return len(blocks)


def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of the block whose forward pass is repeated in the backward pass."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        plain: Callable[[Tensor], Tensor] = kind.forward.__get__(self)
        if not (self.training and torch.is_grad_enabled()):
            return plain(x)
        calls = 0

        def run(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            # Update the batch-norm statistics only in the first of the two forward passes.
            with contextlib.nullcontext() if calls == 1 else frozen_running_statistics(self):
                return plain(x)

        # These blocks draw no random numbers, so there is no state to restore.
        result: Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return result

    return type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward})


@contextlib.contextmanager
def frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Context manager in which batch norms use the batch's statistics without updating their running statistics.

    They save the same tensors for the backward pass, which checkpointing compares with the first pass.
    """
    norms: list[Any] = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, counted
