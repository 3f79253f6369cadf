"""Async readback of numbers from a GPU without draining its queue."""

from __future__ import annotations

import torch


class Readback:
    """Asynchronous copy of a few numbers from the device to the host.

    `numbers` waits until the device has computed them, but not for work queued later. On a CPU it returns immediately.

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
        """Return the values, after waiting for the copy."""
        if self._computed is not None:
            self._computed.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers
