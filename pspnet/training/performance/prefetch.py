"""Mini-batches on their way to the device: copied one ahead on a GPU, and cut where one does not fit.

Legend: N images in a mini-batch, H, W their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from pspnet.data.loader import Batch


def to_device(batch: Batch, device: torch.device, channels_last: bool = True) -> Batch:
    """The mini-batch on the device, as bytes; a pinned one is copied without waiting for it."""
    images = batch.images.to(device, non_blocking=True)  # (N, 3, H, W) uint8
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, batch.targets.to(device, non_blocking=True), batch.names)


def ahead_on_device(batches: Iterable[Batch], device: torch.device, channels_last: bool = True) -> Iterator[Batch]:
    """The mini-batches on the device. On a GPU each is copied in a stream of its own while the one before is computed.

    On a CPU nothing is fetched before it is asked for, so that a broken file is met at its own step.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, channels_last)
        return
    stream = torch.cuda.Stream(device)
    before: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = to_device(batch, device, channels_last), stream.record_event()
        if before is not None:
            yield _arrived(*before)
        before = following
    if before is not None:
        yield _arrived(*before)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch, for the stream that computes: it starts after the copy, and the memory is kept until it is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(current)
    return batch


def cut(batch: Batch, largest: int | None) -> list[Batch]:
    """The batch in as few parts of at most `largest` images as can be, their sizes as even as can be."""
    count = len(batch.images)
    if largest is None or count <= largest:
        return [batch]
    parts, first = [], 0
    for size in part_sizes(count, largest):
        chosen = slice(first, first + size)
        parts.append(Batch(batch.images[chosen], batch.targets[chosen], batch.names[chosen]))
        first += size
    return parts


def part_sizes(count: int, largest: int | None) -> list[int]:
    """How many images the parts of `count` have, the larger ones first: 7 in parts of at most 3 are 3, 2 and 2."""
    number = 1 if largest is None else -(-count // largest)
    return [count // number + (index < count % number) for index in range(number)]


def usual_part(count: int, largest: int | None) -> int:
    """The size that most parts of `count` images have; of two that are as frequent, the larger one."""
    sizes = part_sizes(count, largest)
    return max(sizes, key=sizes.count)


def share_of(count: int, rank: int, world_size: int) -> int:
    """How many of a mini-batch's images a process has: 10 among 4 are 3, 3, 2 and 2."""
    return count // world_size + (rank < count % world_size)
