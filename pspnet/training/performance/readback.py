"""Numbers that a GPU has computed, read without draining its queue of work."""

from __future__ import annotations

import torch


class Readback:
    """A few numbers on their way from the device to the host.

    Reading them waits until the device has computed them, and for nothing that was given to it afterwards. On a CPU
    they are there at once.

    Args:
        values: one-dimensional.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._computed: torch.cuda.Event | None = None
        self._host = values
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._computed = torch.cuda.Event()
            self._computed.record()

    def numbers(self) -> list[float]:
        """The values."""
        if self._computed is not None:
            self._computed.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers
