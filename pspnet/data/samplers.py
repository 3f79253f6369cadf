"""Batch samplers: shuffled batches for training, batches of one image size for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Sampler

from pspnet.data.channels import Pair


class TrainBatchSampler(Sampler[Any]):
    """Shuffled batches of one epoch for one process, starting at any position.

    All processes draw the same order from (seed, epoch) and take their slice of every batch, so that mini_batch_size
    counts the images per step over all processes. A last batch with fewer images than processes is filled from the
    start of the order, because every process must take part in every step.
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
        """Batches of a complete epoch, independent of `start`."""
        return -(-self.length // self.batch_size)

    def set_position(self, epoch: int, start: int) -> None:
        """Set the epoch to draw, and the number of its batches to skip."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch, self.length]).permutation(self.length)
        for number in range(self.start, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            if len(batch) < self.world_size:
                batch = np.resize(np.concatenate([batch, order]), self.world_size)
            part = np.array_split(batch, self.world_size)[self.rank]
            yield [(self.epoch, int(index)) for index in part]


class EvaluationBatchSampler(Sampler[Any]):
    """Batches of equally sized images, distributed to the processes batch by batch.

    The batches do not depend on the number of processes and no image is repeated, so the summed confusion matrix of
    several processes equals that of one.
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
    """(W, H) of every image, read from the headers; (0, 0) for unreadable files, which the loader reports."""
    sizes = []
    for pair in pairs:
        try:
            with Image.open(pair.image) as image:
                sizes.append(image.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            sizes.append((0, 0))
    return sizes
