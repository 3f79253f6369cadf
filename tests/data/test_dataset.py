"""Samples, samplers and loaders: content and order of batches, broken files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.classes import LabelMap, load_label_map
from pspnet.data.augmentation import Augmentation
from pspnet.data.channels import Pair, load_pairs
from pspnet.data.dataset import SegmentationDataset, read_pair
from pspnet.data.loader import Batch, build_loader, collate, load_batches
from pspnet.data.samplers import EvaluationBatchSampler, TrainBatchSampler, image_sizes
from pspnet.data.transforms import TrainTransform
from pspnet.errors import DataError


def write_pair(folder: Path, stem: str, mask: np.ndarray, image: np.ndarray | None = None) -> Pair:
    images, annotations = folder / "train", folder / "train_annotation"
    images.mkdir(exist_ok=True)
    annotations.mkdir(exist_ok=True)
    if image is None:
        image = np.random.default_rng(len(stem)).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(images / f"{stem}.png")
    Image.fromarray(mask.astype(np.uint8)).save(annotations / f"{stem}.png")
    return Pair(images / f"{stem}.png", annotations / f"{stem}.png")


def write_channel(folder: Path, count: int, size: tuple[int, int] = (36, 40)) -> list[Pair]:
    rng = np.random.default_rng(0)
    for index in range(count):
        mask = rng.integers(0, 5, size, dtype=np.uint8)
        write_pair(folder, f"{index:03d}", mask, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return load_pairs(folder / "train", folder / "train_annotation")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return write_channel(tmp_path_factory.mktemp("channel"), 11)


PIPELINE = """
transform:
  __class_fullname__: Compose
  transforms: [{__class_fullname__: VerticalFlip, p: 0.5}, {__class_fullname__: ISONoise, p: 0.5}]
"""


@pytest.fixture(params=["window", "pipeline"])
def augmentation(request: pytest.FixtureRequest, tmp_path: Path) -> Augmentation | None:
    if request.param == "window":
        return None
    pytest.importorskip("albumentations")
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return Augmentation(str(tmp_path / "pipeline.yaml"), 32)


def crops(pairs: list[Pair], seed: int = 5, augmentation: Augmentation | None = None) -> SegmentationDataset:
    transform = TrainTransform(32, 40, rotation=10.0, augmentation=augmentation)
    return SegmentationDataset(pairs, 5, transform, seed=seed)


def epoch_batches(loader: Any, epoch: int, start: int = 0) -> list[Batch]:
    loader.batch_sampler.set_position(epoch, start)
    return list(load_batches(loader))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert [batch.names for batch in left] == [batch.names for batch in right]
    for one, other in zip(left, right):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def indices(batches: Iterator[list[tuple[int, int]]]) -> list[list[int]]:
    return [[index for _, index in batch] for batch in batches]


# --- one pair ---------------------------------------------------------------------------------------------------------


def test_a_pair_is_read_as_stored(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [255, 2, 1]], dtype=np.uint8)
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    read_image, read_mask = read_pair(write_pair(tmp_path, "a", mask, image), num_classes=3)
    np.testing.assert_array_equal(read_image, image)
    np.testing.assert_array_equal(read_mask, mask)


def test_a_label_map_is_applied(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"map": {"0": 5, "1": 0, "2": 9}}')
    pair = write_pair(tmp_path, "a", np.array([[5, 0, 9], [255, 7, 5]]))
    _, mask = read_pair(pair, 3, load_label_map(tmp_path / "map.json"))
    assert mask.tolist() == [[0, 1, 2], [255, 255, 0]]  # 7 is not named, so ignored


def test_another_ignore_value_becomes_255(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "a", np.array([[0, 1, 11], [255, 2, 11]]))
    _, mask = read_pair(pair, 3, ignore_index=11)
    assert mask.tolist() == [[0, 1, 255], [255, 2, 255]]
    _, background_ignored = read_pair(write_pair(tmp_path, "b", np.array([[0, 1, 2]])), 3, ignore_index=0)
    assert background_ignored.tolist() == [[255, 1, 2]]


def test_the_ignore_value_applies_after_the_label_map(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"map": {"0": 5, "9": 0}}')
    pair = write_pair(tmp_path, "a", np.array([[5, 0]]))
    _, mask = read_pair(pair, 3, load_label_map(tmp_path / "map.json"), ignore_index=9)
    assert mask.tolist() == [[0, 255]]


def test_different_sizes_are_named(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "a", np.zeros((4, 6)), np.zeros((6, 4, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.png: the mask is 6x4 px but its image .*a\.png is 4x6 px") as caught:
        read_pair(pair, 3)
    assert "EXIF rotation is not applied" in str(caught.value)


def test_invalid_class_ids_are_named_with_a_fix(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "a", np.array([[0, 3, 7], [254, 255, 7]]))
    with pytest.raises(DataError, match=r"class ids \[3, 7, 254\] are outside 0\.\.2 and are not 255") as caught:
        read_pair(pair, 3)
    text = str(caught.value)
    assert text.startswith(str(pair.annotation))
    assert "raise --num_classes" in text
    assert "add a label map" in text
    assert "pspnet doctor" in text


def test_invalid_class_ids_are_traced_through_the_label_map(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"map": {"0": 5, "8": 40, "1": 0}}')
    pair = write_pair(tmp_path, "a", np.array([[5, 0, 40]]))
    with pytest.raises(DataError, match=r"class ids \[8\] .*come from pixel values \[40\] through the label map"):
        read_pair(pair, 3, load_label_map(tmp_path / "map.json"))


def test_the_largest_number_of_classes(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "a", np.array([[0, 253, 255]]))
    assert read_pair(pair, 254)[1].tolist() == [[0, 253, 255]]
    with pytest.raises(DataError, match=r"class ids \[253\]"):
        read_pair(pair, 253)


# --- data set and batches ---------------------------------------------------------------------------------------------


def test_a_batch_has_uint8_images_targets_and_names(pairs: list[Pair]) -> None:
    loader = build_loader(SegmentationDataset(pairs, 5), EvaluationBatchSampler([(40, 36)] * 11, 4), workers=0)
    batches = list(load_batches(loader))
    assert [len(batch.names) for batch in batches] == [4, 4, 3]
    first = batches[0]
    assert first.images.shape == (4, 3, 36, 40)
    assert first.targets.shape == (4, 36, 40)
    assert first.images.dtype == first.targets.dtype == torch.uint8
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.names == [str(pair.image) for pair in pairs[:4]]
    for position, pair in enumerate(pairs[:4]):
        image, mask = read_pair(pair, 5)
        np.testing.assert_array_equal(first.images[position].permute(1, 2, 0).numpy(), image)
        np.testing.assert_array_equal(first.targets[position].numpy(), mask)


def test_a_sample_depends_only_on_seed_epoch_and_index(pairs: list[Pair]) -> None:
    first = crops(pairs)[(1, 3)]
    data = crops(pairs)
    for key in ((2, 3), (1, 4), (1, 0)):
        data[key]
    again = data[(1, 3)]
    assert not isinstance(first, DataError)
    assert not isinstance(again, DataError)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for other in (data[(2, 3)], crops(pairs, seed=6)[(1, 3)]):
        assert not isinstance(other, DataError)
        assert other[2] == first[2]
        assert not np.array_equal(other[0], first[0])


def test_batches_do_not_depend_on_the_workers(pairs: list[Pair], augmentation: Augmentation | None) -> None:
    dataset = crops(pairs, augmentation=augmentation)
    alone = build_loader(dataset, TrainBatchSampler(11, 4, seed=5), workers=0)
    several = build_loader(dataset, TrainBatchSampler(11, 4, seed=5), workers=2, persistent=True)
    for epoch in (1, 2):
        assert_same(epoch_batches(alone, epoch), epoch_batches(several, epoch))


def test_batches_do_not_depend_on_the_start_position(pairs: list[Pair], augmentation: Augmentation | None) -> None:
    loader = build_loader(crops(pairs, augmentation=augmentation), TrainBatchSampler(11, 2, seed=5), workers=0)
    whole = epoch_batches(loader, 3)
    assert len(whole) == 6
    for start in (1, 4, 6):
        assert_same(epoch_batches(loader, 3, start), whole[start:])


def test_an_interrupted_epoch_does_not_affect_the_next(pairs: list[Pair]) -> None:
    loader = build_loader(crops(pairs), TrainBatchSampler(11, 2, seed=5), workers=2, persistent=True)
    expected = epoch_batches(loader, 2)
    loader.batch_sampler.set_position(1, 0)
    for batch in load_batches(loader):
        assert len(batch.names) == 2
        break
    assert_same(epoch_batches(loader, 2), expected)


# --- order of training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "batch_size"), [(11, 4), (12, 4), (3, 8), (1, 1), (5, 1)])
def test_every_index_occurs_once_per_epoch(length: int, batch_size: int) -> None:
    sampler = TrainBatchSampler(length, batch_size, seed=0)
    sampler.set_position(1, 0)
    batches = indices(iter(sampler))
    assert len(batches) == len(sampler) == -(-length // batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(length))
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_the_order_changes_with_epoch_and_seed_only() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = TrainBatchSampler(50, 8, seed)
        sampler.set_position(epoch, 0)
        return indices(iter(sampler))

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != [list(range(first, min(first + 8, 50))) for first in range(0, 50, 8)]


def test_the_key_contains_the_epoch() -> None:
    sampler = TrainBatchSampler(3, 2, seed=0)
    sampler.set_position(7, 1)
    assert [epoch for batch in sampler for epoch, _ in batch] == [7]
    assert len(sampler) == 2  # of the whole epoch


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_parts_of_the_processes_form_the_batch(world_size: int) -> None:
    alone = TrainBatchSampler(22, 5, seed=0)
    alone.set_position(4, 1)
    ranks = [TrainBatchSampler(22, 5, 0, rank, world_size) for rank in range(world_size)]
    for sampler in ranks:
        sampler.set_position(4, 1)
    whole, parts = indices(iter(alone)), [indices(iter(sampler)) for sampler in ranks]
    assert [len(part) for part in parts] == [len(whole)] * world_size
    for number in range(len(whole) - 1):
        joined = [index for part in parts for index in part[number]]
        assert joined == whole[number]
        sizes = [len(part[number]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_last_batch_smaller_than_the_processes_is_filled() -> None:
    alone = TrainBatchSampler(9, 4, seed=0)
    whole = indices(iter(alone))
    assert [len(batch) for batch in whole] == [4, 4, 1]
    parts = [indices(iter(TrainBatchSampler(9, 4, 0, rank, 4))) for rank in range(4)]
    last = [part[-1] for part in parts]
    assert [len(part) for part in last] == [1, 1, 1, 1]
    assert [part[0] for part in last] == whole[-1] + whole[0][:3]


def test_fewer_images_than_processes_repeat() -> None:
    parts = [indices(iter(TrainBatchSampler(2, 8, 0, rank, 5))) for rank in range(5)]
    drawn = [part[0][0] for part in parts]
    assert [len(part) for part in parts] == [1] * 5
    assert set(drawn) == {0, 1}


# --- order of evaluation ----------------------------------------------------------------------------------------------

SIZES = [(40, 30), (20, 20), (40, 30), (40, 30), (20, 20), (30, 40), (40, 30), (40, 30)]


def test_evaluation_batches_have_one_size_and_every_image_once() -> None:
    sampler = EvaluationBatchSampler(SIZES, 2)
    batches = indices(iter(sampler))
    assert len(sampler) == len(batches) == 5
    assert batches == [[0, 2], [3, 6], [7], [1, 4], [5]]
    assert all(len({SIZES[index] for index in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_evaluation_batches_are_distributed_exactly(world_size: int) -> None:
    whole = indices(iter(EvaluationBatchSampler(SIZES, 2)))
    dealt = [indices(iter(EvaluationBatchSampler(SIZES, 2, rank, world_size))) for rank in range(world_size)]
    assert sorted(batch for part in dealt for batch in part) == sorted(whole)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_image_sizes_come_from_the_headers(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "a", np.zeros((5, 9)))
    broken = Pair(tmp_path / "broken.png", pair.annotation)
    broken.image.write_bytes(b"no image")
    missing = Pair(tmp_path / "missing.png", pair.annotation)
    assert image_sizes([pair, broken, missing]) == [(9, 5), (0, 0), (0, 0)]


# --- broken samples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_invalid_label_raises_data_error(tmp_path: Path, workers: int) -> None:
    pairs = write_channel(tmp_path, 5)
    Image.fromarray(np.full((36, 40), 9, dtype=np.uint8)).save(pairs[3].annotation)
    loader = build_loader(crops(pairs), TrainBatchSampler(5, 2, seed=0), workers)
    with pytest.raises(DataError, match=r"003\.png: class ids \[9\] are outside 0\.\.4") as caught:
        list(load_batches(loader))
    text = str(caught.value)
    assert "Traceback" not in text
    assert "worker" not in text
    assert "\n" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_raises_data_error(tmp_path: Path, workers: int) -> None:
    pairs = write_channel(tmp_path, 3)
    pairs[1].image.write_bytes(pairs[1].image.read_bytes()[:900])
    sampler = EvaluationBatchSampler(image_sizes(pairs), 3)
    loader = build_loader(SegmentationDataset(pairs, 5), sampler, workers)
    with pytest.raises(DataError, match=r"001\.png: not a readable image") as caught:
        list(load_batches(loader))
    assert "Traceback" not in str(caught.value)
    assert str(pairs[1].image) in str(caught.value)


def test_batches_before_the_broken_one_are_delivered(tmp_path: Path) -> None:
    pairs = write_channel(tmp_path, 4)
    pairs[3].annotation.unlink()
    loader = build_loader(SegmentationDataset(pairs, 5), EvaluationBatchSampler([(40, 36)] * 4, 1), workers=0)
    batches = load_batches(loader)
    assert [next(batches).names for _ in range(3)] == [[str(pair.image)] for pair in pairs[:3]]
    with pytest.raises(DataError, match=r"003\.png: not a readable annotation \(no such file\)"):
        next(batches)


@pytest.mark.slow
def test_collate_returns_the_first_error() -> None:
    good = (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), "a")
    first, second = DataError("first"), DataError("second")
    assert collate([good, first, second]) is first
    assert isinstance(collate([good, good]), Batch)


def test_a_label_map_reaches_the_samples(tmp_path: Path) -> None:
    table = np.full(256, 255, dtype=np.uint8)
    table[[10, 20]] = 0, 1
    label_map = LabelMap(table, table != 255)
    pair = write_pair(tmp_path, "a", np.array([[10, 20], [30, 10]]))
    sample = SegmentationDataset([pair], 2, label_map=label_map)[(0, 0)]
    assert not isinstance(sample, DataError)
    assert sample[1].tolist() == [[0, 1], [255, 0]]
