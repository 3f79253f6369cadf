"""Spill queue: order, limit, recovery and locking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pspnet.errors import ConfigError
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.spill_queue import SpillQueue, folder_name
from pspnet.stream.statistics import SinkStatistics
from tests.stream.fakes import masked


def open_queue(folder: Path, limit: int = 10**6) -> SpillQueue:
    return SpillQueue(folder, limit, SinkStatistics("list"))


def drain(spill: SpillQueue) -> list[int]:
    numbers = []
    while (item := spill.first()) is not None:
        numbers.append(item.frame.index)
        spill.remove_first()
    return numbers


def test_round_trip_of_items_in_order(tmp_path: Path) -> None:
    spill = open_queue(tmp_path / "s", 10**6)
    item = masked(7)
    noise = np.random.default_rng(0).integers(0, 256, (5, 9)).astype(np.uint8)
    item = MaskedFrame(item.frame, noise, 1.0)
    assert spill.append(item)
    back = spill.first()
    assert back is not None
    np.testing.assert_array_equal(back.mask, noise)
    assert back.frame.image.shape == (5, 9, 3)
    assert (back.frame.index, back.frame.captured, back.frame.timestamp, back.frame.labels) == (
        7, item.frame.captured, 0.7, {"n": "7"},
    )  # fmt: skip
    for number in (8, 9):
        spill.append(masked(number))
    spill.prepend([masked(5), masked(6)])
    assert len(spill) == 5
    assert drain(spill) == [5, 6, 7, 8, 9]
    assert spill.size == 0
    spill.close()
    assert not (tmp_path / "s").exists()


def test_the_folder_is_created_on_first_use(tmp_path: Path) -> None:
    open_queue(tmp_path / "s", 10**6).close()
    assert list(tmp_path.iterdir()) == []


def test_another_run_finds_the_remaining_items_in_order(tmp_path: Path) -> None:
    spill = open_queue(tmp_path, 10**6)
    for number in range(12):
        spill.append(masked(number))
    spill.prepend([masked(100)])
    size = spill.size
    spill.close()
    again = open_queue(tmp_path, 10**6)
    assert len(again) == 13
    assert again.size == size
    item = again.first()
    assert item is not None
    assert item.frame.image.shape == (4, 6, 3)
    assert not item.frame.image.any()
    again.append(masked(12))
    assert drain(again) == [100, *range(13)]


def test_the_limit_applies_to_appended_items(tmp_path: Path) -> None:
    spill = open_queue(tmp_path, 1500)
    kept = [spill.append(masked(number)) for number in range(20)]
    assert 1 < sum(kept) < 20
    assert kept == sorted(kept, reverse=True)
    assert spill.size < 1500 + 1000
    assert drain(spill) == list(range(sum(kept)))


def test_a_damaged_item_is_renamed_and_raises(tmp_path: Path) -> None:
    spill = open_queue(tmp_path, 10**6)
    for number in range(3):
        spill.append(masked(number))
    path = sorted(tmp_path.glob("item-*.png"))[1]
    path.write_bytes(path.read_bytes()[:40])
    spill.remove_first()
    assert drain(spill) == [2]
    assert path.with_suffix(".damaged").exists()
    assert spill._statistics["lost"] == 1
    assert len(spill) == 0


def test_a_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    spill = open_queue(tmp_path, 10**6)
    spill.append(masked(0))
    with pytest.raises(ConfigError, match=r"is in use by another stream; pass another folder\."):
        open_queue(tmp_path, 10**6)
    spill.close()
    assert len(open_queue(tmp_path, 10**6)) == 1


def test_a_folder_created_by_another_stream_is_read_before_it_is_written(tmp_path: Path) -> None:
    early = open_queue(tmp_path / "s", 10**6)
    killed = open_queue(tmp_path / "s", 10**6)
    killed.append(masked(1))
    assert not early.append(masked(2))
    assert killed._lock is not None
    killed._lock.close()  # as at the end of its process
    early.append(masked(2))
    early.prepend([masked(0)])
    assert drain(early) == [0, 1, 2]


def test_folder_names_are_unique_and_readable() -> None:
    names = {folder_name(name) for name in ("s3://bucket/a", "s3://bucket-a", "s3:/bucket/a")}
    assert len(names) == 3
    assert all(name.startswith("s3-bucket-a-") for name in names)
