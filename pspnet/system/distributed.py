"""The processes of a data-parallel run, as `torchrun` starts them. A single process needs none of it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from pspnet.errors import ProcessLostError

# gloo's threads let go of an operation's tensors a moment after it is done. A tensor that Python holds no more is then
# theirs to free, for which they need Python's lock. But Python keeps that lock while it frees the group and waits for
# these threads: both wait for ever (seen with torch 1.12 and 2.1, not with 2.15). So the last tensors stay with Python.
_LAST_TENSORS: deque[torch.Tensor] = deque(maxlen=16)


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that logs and writes files."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in all of them."""
        if self.world_size > 1:
            value = value.clone()
            _LAST_TENSORS.append(value)
            with _named_loss_of_a_process():
                distributed.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """True in all processes where it is true in at least one."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item() > 0)

    def least(self, number: int, device: torch.device | None = None) -> int:
        """The smallest of all processes' numbers."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number, device=device)
        _LAST_TENSORS.append(value)
        with _named_loss_of_a_process():
            distributed.all_reduce(value, op=distributed.ReduceOp.MIN)
        return int(value.item())

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors of all other processes with the main one's."""
        if self.world_size > 1:
            with _named_loss_of_a_process():
                for tensor in tensors:
                    _LAST_TENSORS.append(tensor)
                    distributed.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            with _named_loss_of_a_process():
                distributed.barrier()

    def shutdown(self) -> None:
        """Leave the process group, if there is one."""
        if self.world_size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


@contextlib.contextmanager
def _named_loss_of_a_process() -> Iterator[None]:
    """A process that ends with an error breaks the connection; the others should not bury its message in tracebacks."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            f"Another process of this run has ended, and this one with it; its own message says why. ({error})"
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
