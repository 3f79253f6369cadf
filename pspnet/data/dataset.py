"""Datasets, samplers and loaders. Batches carry uint8 pixels: the model normalises them, on its own device.

Legend: N images in a batch, H, W their height and width.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from pspnet.classes import IGNORE_INDEX, LabelMap
from pspnet.data.cache.sample_cache import ImageCache
from pspnet.data.channels import Pair, label_problem
from pspnet.data.io.images import read_annotation, read_image
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


def read_pair(
    pair: Pair,
    num_classes: int,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    channel: str = "train",
    cache: ImageCache | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB and (H, W) uint8 class ids of one pair, `ignore_index` turned into 255.

    The arrays may not be writable. With a cache the files are decoded only where it does not hold them yet.

    Raises DataError for unreadable files, sizes that differ and class ids outside num_classes.
    """
    decoded = None if cache is None else cache.read(pair)
    if decoded is None:
        decoded = decode_pair(pair)
        if cache is not None:
            cache.write(pair, *decoded)
    image, mask = decoded
    return image, to_class_ids(mask, pair.annotation, num_classes, label_map, ignore_index, channel)


def decode_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB and (H, W) uint8 pixel values of the two files of one pair.

    Raises DataError for unreadable files and sizes that differ.
    """
    image = read_image(pair.image)
    mask = read_annotation(pair.annotation)
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{pair.annotation}: the mask is {mask.shape[1]}x{mask.shape[0]} px but its image {pair.image} is "
            f"{image.shape[1]}x{image.shape[0]} px; expected the same size. Write the mask on the image's stored pixel "
            "grid (EXIF rotation is not applied)."
        )
    return image, mask


def to_class_ids(
    mask: np.ndarray,
    path: Path,
    num_classes: int,
    label_map: LabelMap | None = None,
    ignore_index: int = IGNORE_INDEX,
    channel: str = "train",
) -> np.ndarray:
    """(H, W) uint8 pixel values of the annotation `path` -> class ids, `ignore_index` turned into 255.

    Raises DataError for class ids outside num_classes.
    """
    if label_map is not None:
        mask = label_map.apply(mask)
    if ignore_index != IGNORE_INDEX:
        mask = np.where(mask == ignore_index, np.uint8(IGNORE_INDEX), mask)
    # One more than each id, in a byte: 0 for 255. A look at the values themselves only where something is wrong.
    if (mask + np.uint8(1)).max() > num_classes:
        wrong = [int(value) for value in np.unique(mask) if num_classes <= value < IGNORE_INDEX]
        raise DataError(label_problem(wrong, num_classes, label_map, path, channel))
    return mask


class SegmentationDataset(Dataset[Any]):
    """Pairs of a channel as arrays; with a transform, random crops that depend on (seed, epoch, index) alone.

    A broken sample is returned as its DataError and raised by `load_batches`: an exception raised inside a worker
    process would reach the user wrapped in that worker's traceback.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        num_classes: int,
        transform: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None,
        label_map: LabelMap | None = None,
        ignore_index: int = IGNORE_INDEX,
        seed: int = 0,
        channel: str = "train",
        cache: ImageCache | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.num_classes = num_classes
        self.transform = transform
        self.label_map = label_map
        self.ignore_index = ignore_index
        self.seed = seed
        self.channel = channel
        self.cache = cache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str] | DataError:
        """Sample `index` of `epoch`: (H, W, 3) uint8, (H, W) uint8 and the image's file name."""
        epoch, index = key
        pair = self.pairs[index]
        try:
            image, mask = read_pair(pair, self.num_classes, self.label_map, self.ignore_index, self.channel, self.cache)
        except DataError as error:
            return error
        if self.transform is not None:
            image, mask = self.transform(image, mask, np.random.default_rng([self.seed, epoch, index]))
        return image, mask, str(pair.image)


class TrainBatchSampler(Sampler[Any]):
    """Shuffled batches of one epoch, the part of one process, from any position on.

    All processes draw the same order from (seed, epoch) and take their slice of every batch, so that mini_batch_size
    counts the images of a step however many processes share it. A last batch with fewer images than processes borrows
    from the start of the order: every process must take part in every step.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Batches in a whole epoch, whatever `start` is."""
        return -(-self.length // self.batch_size)

    def set_position(self, epoch: int, start: int) -> None:
        """The epoch to draw, and the number of its batches to skip."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch, self.length]).permutation(self.length)
        for number in range(self.start, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            if len(batch) < self.world_size:
                batch = np.resize(np.concatenate([batch, order]), self.world_size)
            share = np.array_split(batch, self.world_size)[self.rank]
            yield [(self.epoch, int(index)) for index in share]


class EvaluationBatchSampler(Sampler[Any]):
    """Batches of images of one size each, dealt to the processes batch by batch.

    The batches are the same however many processes there are, and no image is seen twice, so that the summed confusion
    matrix of several processes is exactly that of one.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            by_size.setdefault(size, []).append(index)
        batches = [
            indices[first : first + batch_size]
            for indices in by_size.values()
            for first in range(0, len(indices), batch_size)
        ]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(0, index) for index in batch]


def image_sizes(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """(W, H) of every image, from the files' headers alone; (0, 0) where it can't be read, for the loader to report."""
    sizes = []
    for pair in pairs:
        try:
            with Image.open(pair.image) as image:
                sizes.append(image.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            sizes.append((0, 0))
    return sizes


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
