"""Transfer of mini-batches to the device, and micro-batches."""

from __future__ import annotations

import pytest
import torch

from pspnet.data.loader import Batch
from pspnet.data.samplers import TrainBatchSampler
from pspnet.training.performance.prefetch import (
    images_of_rank,
    most_common_part,
    part_sizes,
    prefetch_to_device,
    split_batch,
)
from pspnet.training.performance.readback import Readback


def make_batch(count: int) -> Batch:
    images = torch.arange(count * 3 * 4 * 4, dtype=torch.uint8).view(count, 4, 4, 3).permute(0, 3, 1, 2)
    return Batch(images, torch.zeros(count, 4, 4, dtype=torch.uint8), [str(number) for number in range(count)])


def test_part_sizes_are_even_and_the_larger_come_first() -> None:
    assert part_sizes(16, 5) == [4, 4, 4, 4]
    assert part_sizes(7, 3) == [3, 2, 2]
    assert part_sizes(4, 4) == part_sizes(4, None) == [4]
    assert part_sizes(5, 1) == [1] * 5


def test_parts_contain_every_image_once_in_order() -> None:
    batch = make_batch(7)
    parts = split_batch(batch, 3)
    assert [part.names for part in parts] == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert split_batch(batch, None) == [batch]


def test_cpu_batches_are_yielded_one_by_one_as_bytes() -> None:
    requests = []

    def batches() -> object:
        for count in (1, 2):
            requests.append(count)
            yield make_batch(count)

    moved = prefetch_to_device(batches(), torch.device("cpu"))
    first = next(moved)
    assert requests == [1]
    assert first.images.dtype == torch.uint8
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert [len(batch.names) for batch in moved] == [2]


def test_numbers_are_read_back() -> None:
    assert Readback(torch.tensor([1.5, -2.0], dtype=torch.float64)).numbers() == [1.5, -2.0]


@pytest.mark.parametrize(("count", "largest", "size"), [(16, None, 16), (7, 3, 2), (8, 3, 3), (3, 2, 2), (4, 9, 4)])
def test_most_common_part(count: int, largest: int | None, size: int) -> None:
    assert most_common_part(count, largest) == size


def test_images_of_rank_match_the_sampler() -> None:
    for images in (4, 9, 10, 16):
        dealt = [next(iter(TrainBatchSampler(images, images, 0, rank, 4))) for rank in range(4)]
        assert [images_of_rank(images, rank, 4) for rank in range(4)] == [len(batch) for batch in dealt]
