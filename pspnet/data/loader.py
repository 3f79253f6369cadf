"""Batches of a dataset, loaded in worker processes.

Legend: N images in a batch, H, W their height and width.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pspnet.data.dataset import SegmentationDataset
from pspnet.data.samplers import EvaluationBatchSampler, TrainBatchSampler
from pspnet.errors import DataError


@dataclass
class Batch:
    """images (N, 3, H, W) uint8 RGB, targets (N, H, W) uint8 class ids, and the names of the image files."""

    images: torch.Tensor
    targets: torch.Tensor
    names: list[str]

    def pin_memory(self) -> Batch:
        """Pin the memory, so that copies to a GPU overlap with computation; called by DataLoader."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.names)


def collate(samples: list[Any]) -> Batch | DataError:
    """Stack samples of one size into a Batch; returns the first DataError among them instead, if any."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images = np.stack([image for image, _, _ in samples])  # (N, H, W, 3)
    targets = np.stack([mask for _, mask, _ in samples])  # (N, H, W)
    return Batch(
        # Permuted, not copied: the memory already is channels_last, which convolutions prefer.
        images=torch.from_numpy(images).permute(0, 3, 1, 2),  # (N, 3, H, W)
        targets=torch.from_numpy(targets),
        names=[name for _, _, name in samples],
    )


def build_loader(
    dataset: SegmentationDataset,
    batch_sampler: TrainBatchSampler | EvaluationBatchSampler,
    workers: int,
    pin_memory: bool = False,
    persistent: bool = False,
) -> DataLoader[Any]:
    """A DataLoader of Batches in the sampler's order. `persistent` keeps the workers between epochs."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=persistent and workers > 0,
        worker_init_fn=_start_worker,
    )


@contextlib.contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread and, permanently, in the workers that it starts.

    The main process handles a SIGTERM to all processes of a job (timeout, scancel, systemd). Workers would exit on it,
    which makes the main process raise at an arbitrary point.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_worker: int) -> None:
    """Make this worker exit on its parent's SIGTERM only."""
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):  # macOS does not report the sender of a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def load_batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Iterate a loader; raises the DataError of the first broken sample."""
    with _sigterm_blocked():
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, DataError):
            try:
                raise batch
            finally:
                # A reference cycle of the exception and its frame would keep the loader and its workers alive.
                del batch
        yield batch
