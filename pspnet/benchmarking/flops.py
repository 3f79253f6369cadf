"""How many floating point operations a network needs: a multiplication and an addition count as two."""

from __future__ import annotations

from collections.abc import Callable


def count_flops(function: Callable[[], object]) -> int:
    """Operations of the convolutions and matrix products that a call makes, its backward pass included if it has one.

    PyTorch's own counter sees the operations as they run; batch norm, ReLU, interpolation and the like don't count,
    nor do the fused operations of the inference form (models/fused/folded.py). So give it a network in its plain form
    (pspnet.benchmarking.plain): the work that was asked for is the same in every form.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
