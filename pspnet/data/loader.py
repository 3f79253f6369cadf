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
        """Called by the loader, so that copies to a GPU can overlap with its work."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.names)


def collate(samples: list[Any]) -> Batch | DataError:
    """Stack samples of one size into a Batch; the first DataError among them comes out in its place."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images = np.stack([image for image, _, _ in samples])  # (N, H, W, 3)
    targets = np.stack([mask for _, mask, _ in samples])  # (N, H, W)
    return Batch(
        # Permuted, not copied: the bytes already lie in channels_last order, which is what convolutions want.
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
    """A loader of Batches in the sampler's order. `persistent` keeps the workers between epochs."""
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
def _without_sigterm() -> Iterator[None]:
    """Hold SIGTERM back from this thread and from the workers that start in it, who never let it through again.

    A SIGTERM to all processes of a job (timeout, scancel, systemd) is for the main process to answer. PyTorch's workers
    would die of it, and make the main process raise in the middle of whatever it does.
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
    """Have this worker obey its parent's SIGTERM, and no other's."""
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):  # macOS does not tell who sent a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def load_batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Iterate a loader; raises the DataError of the first broken sample."""
    with _without_sigterm():
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, DataError):
            try:
                raise batch
            finally:
                # An exception that its own frame refers to would keep the loader, and with it the workers, alive.
                del batch
        yield batch
