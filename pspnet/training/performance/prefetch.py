"""Transfer of mini-batches to the device: prefetch on a GPU, and splitting into micro-batches.

Legend: N images in a mini-batch, H, W their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from pspnet.data.loader import Batch


def to_device(batch: Batch, device: torch.device, channels_last: bool = True) -> Batch:
    """Copy the uint8 mini-batch to the device; asynchronously from pinned memory."""
    images = batch.images.to(device, non_blocking=True)  # (N, 3, H, W) uint8
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, batch.targets.to(device, non_blocking=True), batch.names)


def prefetch_to_device(batches: Iterable[Batch], device: torch.device, channels_last: bool = True) -> Iterator[Batch]:
    """Yield the mini-batches on the device; on a GPU each is copied in a side stream during the previous step.

    On a CPU nothing is prefetched, so that a broken file raises at its own step.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, channels_last)
        return
    stream = torch.cuda.Stream(device)
    previous: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = to_device(batch, device, channels_last), stream.record_event()
        if previous is not None:
            yield _after_copy(*previous)
        previous = following
    if previous is not None:
        yield _after_copy(*previous)


def _after_copy(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Make the current stream wait for the copy, and keep the batch's memory until that stream is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(current)
    return batch


def split_batch(batch: Batch, largest: int | None) -> list[Batch]:
    """Split the batch into the fewest parts of at most `largest` images, as even as possible."""
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
    """Return the sizes of the parts of `count` images, larger ones first: 7 with at most 3 per part -> 3, 2, 2."""
    number = 1 if largest is None else -(-count // largest)
    return [count // number + (index < count % number) for index in range(number)]


def most_common_part(count: int, largest: int | None) -> int:
    """Return the most common part size of `count` images; of two equally common ones the larger."""
    sizes = part_sizes(count, largest)
    return max(sizes, key=sizes.count)


def images_of_rank(count: int, rank: int, world_size: int) -> int:
    """Return the number of a mini-batch's images in process `rank`: 10 over 4 processes -> 3, 3, 2, 2."""
    return count // world_size + (rank < count % world_size)
