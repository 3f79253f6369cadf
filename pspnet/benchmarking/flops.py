"""Counter of floating point operations: a multiplication and an addition count as two."""

from __future__ import annotations

from collections.abc import Callable


def count_flops(function: Callable[[], object]) -> int:
    """Operations of the convolutions and matrix products in a call, including its backward pass if any.

    PyTorch's counter does not see batch norm, ReLU, interpolation and the like, nor the custom operations of the fused
    inference model (models/fused/folded.py), so count a network in its plain form (pspnet.benchmarking.plain).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
