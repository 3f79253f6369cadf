"""Gradient checkpointing: activations of the deepest layers are computed twice instead of kept.

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


def check_recomputable(precision: Precision) -> None:
    """Raise ConfigError where this PyTorch would repeat a pass in another number format than the first one."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if precision.autocast_dtype is torch.bfloat16 and version < _LEAST_TORCH_FOR_BFLOAT16:
        raise ConfigError(
            f"gradient_checkpointing: found True with precision bfloat16 and PyTorch {torch.__version__}, which would "
            "repeat passes in another number format; use --precision float32, or PyTorch 2.0 or newer."
        )


def recompute_blocks(network: nn.Module) -> int:
    """Have each block of the backbone's layer3 and layer4 keep its input alone, in place; returns how many blocks.

    Names and values of the state dict stay. Outputs, gradients and batch norm's statistics are those of the plain
    network.
    """
    backbone: Any = network.backbone
    blocks = [block for name in LAYERS for block in getattr(backbone, name)]
    for block in blocks:
        block.__class__ = _recomputed(type(block))
    return len(blocks)


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of blocks, with a forward pass that is repeated in the backward pass."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        plain: Callable[[Tensor], Tensor] = kind.forward.__get__(self)
        if not (self.training and torch.is_grad_enabled()):
            return plain(x)
        calls = 0

        def run(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            # The statistics of a batch count once, although it passes twice.
            with contextlib.nullcontext() if calls == 1 else statistics_kept(self):
                return plain(x)

        # No random numbers are drawn in these blocks, so there is no state of theirs to put back.
        result: Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return result

    return type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})


@contextlib.contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms inside still normalise with the batch's own statistics, but take nothing in.

    They keep what they keep for the backward pass: checkpointing compares that with the first pass.
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
