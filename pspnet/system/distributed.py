"""Process group of a data-parallel run started by `torchrun`; a no-op in a single process."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from pspnet.errors import ProcessLostError

# gloo's threads release an operation's tensors shortly after it is done. If theirs is the last reference, they need the
# GIL to free the tensor. Destroying the group holds the GIL while it joins these threads: a deadlock (seen with torch
# 1.12 and 2.1, not with 2.15). Keeping references to the last tensors avoids it.
_LAST_TENSORS: deque[torch.Tensor] = deque(maxlen=16)


@dataclass(frozen=True)
class Processes:
    """Rank of this process in the group, and the collective operations."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that logs and writes files."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes (all-reduce)."""
        if self.world_size > 1:
            value = value.clone()
            _LAST_TENSORS.append(value)
            with _process_lost_error():
                distributed.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return True in all processes if the flag is true in at least one."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item() > 0)

    def min(self, number: int, device: torch.device | None = None) -> int:
        """Return the smallest number of all processes."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number, device=device)
        _LAST_TENSORS.append(value)
        with _process_lost_error():
            distributed.all_reduce(value, op=distributed.ReduceOp.MIN)
        return int(value.item())

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Broadcast the main process's tensors to all others, in place."""
        if self.world_size > 1:
            with _process_lost_error():
                for tensor in tensors:
                    _LAST_TENSORS.append(tensor)
                    distributed.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.world_size > 1:
            with _process_lost_error():
                distributed.barrier()

    def shutdown(self) -> None:
        """Leave the process group, if there is one."""
        if self.world_size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


@contextlib.contextmanager
def _process_lost_error() -> Iterator[None]:
    """Raise ProcessLostError for a broken connection: tracebacks of the others would bury the cause's message."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            f"Another process of this run has ended, so this one ends too; see its message for the cause. ({error})"
        ) from error


def join_processes(device_type: str) -> Processes:
    """Join the group that torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK) describes; NCCL on GPUs, else gloo."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Processes()
    processes = Processes(int(os.environ["RANK"]), world_size, int(os.environ.get("LOCAL_RANK", "0")))
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return processes
