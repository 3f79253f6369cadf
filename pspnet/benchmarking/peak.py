"""Peak rate of the machine: the fastest of several large matrix products."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Side of the square matrices, large enough that overhead is negligible: about 0.1 s on two CPU cores.
_SIDE = {"cpu": 2048, "cuda": 8192}


def measure_peak(
    device: str = "cpu", dtype: torch.dtype | None = None, repeats: int = 10, side: int | None = None
) -> float:
    """Floating point operations per second in a square matrix product, with as many threads as torch uses.

    Args:
        device: "cpu" or "cuda"; on a GPU float32 uses TF32 if enabled.
        dtype: float32 by default.
        repeats: timed products, of which the fastest is used.
        side: rows and columns of the matrices; the default depends on the device.
    """
    import torch

    side = side or _SIDE.get(device, _SIDE["cpu"])
    a, b = (torch.randn(side, side, device=device).to(dtype or torch.float32) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(2 * side**3 / min(seconds[1:]))
