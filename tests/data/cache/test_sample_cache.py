"""Cache of decoded images: equal samples with and without it, size limit, disk errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.data.cache import cache_folder
from pspnet.data.cache import sample_cache as cache_module
from pspnet.data.cache.cache_folder import available_memory, open_cache
from pspnet.data.cache.sample_cache import ImageCache
from pspnet.data.channels import Pair, load_pairs
from pspnet.data.dataset import SegmentationDataset, read_pair
from pspnet.data.loader import build_loader, load_batches
from pspnet.data.samplers import TrainBatchSampler
from pspnet.data.transforms import TrainTransform
from pspnet.errors import ConfigError, DataError

SIZE = 20 * 30 * 4 + 48 + 8
"""Bytes of a cached pair of write_channel."""


def write_channel(folder: Path, count: int) -> list[Pair]:
    rng = np.random.default_rng(0)
    for name in ("train", "train_annotation"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "train" / f"{index}.jpg")
        mask = Image.fromarray(rng.integers(0, 5, (20, 30), dtype=np.uint8))
        mask.save(folder / "train_annotation" / f"{index}.png")
    return load_pairs(folder / "train", folder / "train_annotation")


def new_cache(folder: Path, limit: int = 10**9, **options: Any) -> ImageCache:
    folder.mkdir(exist_ok=True)
    return ImageCache(folder, limit, **options)


def cached_files(folder: Path) -> int:
    return len(list(folder.glob("*.pair")))


def test_cached_pairs_equal_decoded_pairs(tmp_path: Path) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    cache = new_cache(tmp_path / "cache")
    assert cache.read(pair) is None
    first = read_pair(pair, 5, cache=cache)
    decoded = cache.read(pair)
    assert decoded is not None
    for ours, expected, again in zip(decoded, read_pair(pair, 5), first):
        assert ours.dtype == np.uint8
        assert not ours.flags.writeable
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(again, expected)
    assert cache.used_bytes() == SIZE == next((tmp_path / "cache").glob("*.pair")).stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_equal_with_and_without(tmp_path: Path, workers: int) -> None:
    pairs = write_channel(tmp_path / "data", 7)
    cache = new_cache(tmp_path / "cache", 5 * SIZE)

    def epochs(cache: ImageCache | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = SegmentationDataset(pairs, 5, TrainTransform(16, 30, rotation=5.0), seed=3, cache=cache)
        sampler = TrainBatchSampler(len(pairs), 3, seed=3)
        loader = build_loader(data, sampler, workers, persistent=True)
        found = []
        for epoch in (1, 2):
            sampler.set_position(epoch, 0)
            found += [(batch.images, batch.targets) for batch in load_batches(loader)]
        return found

    plain, first, warm = epochs(None), epochs(cache), epochs(new_cache(tmp_path / "cache", 5 * SIZE))
    assert cached_files(tmp_path / "cache") == 5
    assert cache.used_bytes() == 5 * SIZE
    for expected, *others in zip(plain, first, warm):
        for images, targets in others:
            assert torch.equal(images, expected[0])
            assert torch.equal(targets, expected[1])


def test_the_cache_is_independent_of_classes(tmp_path: Path) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    cache = new_cache(tmp_path / "cache")
    read_pair(pair, 5, cache=cache)
    with pytest.raises(DataError, match=r"class ids \[3, 4\] are outside 0\.\.2"):
        read_pair(pair, 3, cache=cache)
    assert not (read_pair(pair, 5, ignore_index=4, cache=cache)[1] == 4).any()


def test_a_changed_source_is_decoded_again(tmp_path: Path) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    read_pair(pair, 5, cache=new_cache(tmp_path / "cache"))
    Image.fromarray(np.full((20, 30), 2, dtype=np.uint8)).save(pair.annotation)
    os.utime(pair.annotation, ns=(1, 1))
    cache = new_cache(tmp_path / "cache")
    assert (read_pair(pair, 5, cache=cache)[1] == 2).all()
    assert (read_pair(pair, 5, cache=new_cache(tmp_path / "cache"))[1] == 2).all()
    assert cached_files(tmp_path / "cache") == 1
    assert cache.used_bytes() == SIZE


def test_broken_and_missing_sources_are_reported_and_not_cached(tmp_path: Path) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    cache = new_cache(tmp_path / "cache")
    pair.image.write_bytes(pair.image.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(DataError, match="not a readable image"):
            read_pair(pair, 5, cache=cache)
    pair.image.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_pair(pair, 5, cache=new_cache(tmp_path / "cache"))
    assert cached_files(tmp_path / "cache") == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "long", "zeros at the end", "foreign"])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: str) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    cache = new_cache(tmp_path / "cache")
    expected = read_pair(pair, 5, cache=cache)[0].copy()
    file = next((tmp_path / "cache").glob("*.pair"))
    content = file.read_bytes()
    changed = {
        "empty": b"", "cut": content[:-1], "long": content + b"x", "zeros at the end": content[:-50] + bytes(50),
        "foreign": b"x" * len(content),
    }  # fmt: skip
    replacement = tmp_path / "replacement"  # another file: this process may still have the old one mapped
    replacement.write_bytes(changed[damage])
    os.replace(replacement, file)
    assert cache.read(pair) is None
    np.testing.assert_array_equal(read_pair(pair, 5, cache=cache)[0], expected)
    assert cache.read(pair) is not None


def test_a_full_disk_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_channel(tmp_path / "data", 3)
    cache = new_cache(tmp_path / "cache")
    read_pair(pairs[0], 5, cache=cache)

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "replace", full)
    for pair in pairs:
        read_pair(pair, 5, cache=cache)
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "no more decoded images are cached (the disk is full)" in output
    assert "cache_limit_gb" in output
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".pair"]
    assert cache.read(pairs[0]) is not None
    quiet = new_cache(tmp_path / "cache", announce=False)
    read_pair(pairs[1], 5, cache=quiet)
    assert capsys.readouterr().err == ""


def test_the_limit_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_channel(tmp_path / "data", 3)
    cache = new_cache(tmp_path / "cache", SIZE + 1)
    for pair in pairs:
        read_pair(pair, 5, cache=cache)
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "of decoded images, of this and earlier runs; the limit is" in output
    assert cached_files(tmp_path / "cache") == 1
    assert cache.used_bytes() == SIZE


def test_a_pair_decoded_by_two_runs_concurrently_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run reserves, writes and names its file while the first one writes; both have the same process id."""
    pair = write_channel(tmp_path / "data", 1)[0]
    first, second = new_cache(tmp_path / "cache"), new_cache(tmp_path / "cache")
    image, mask = read_pair(pair, 5)
    put = first._put

    def put_late(temporary: Path, path: Path) -> None:
        second.write(pair, image, mask)
        put(temporary, path)

    monkeypatch.setattr(first, "_put", put_late)
    first.write(pair, image, mask)
    assert first.used_bytes() == SIZE
    assert cached_files(tmp_path / "cache") == 1
    assert not first._closed[0]
    assert first.read(pair) is not None


def test_a_removed_folder_is_not_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    cache = new_cache(tmp_path / "cache")
    (tmp_path / "cache" / "bytes").unlink()
    (tmp_path / "cache").rmdir()
    assert read_pair(pair, 5, cache=cache)[0].shape == (20, 30, 3)
    assert "(No such file or directory)" in capsys.readouterr().err


def test_the_count_is_corrected_at_the_start(tmp_path: Path) -> None:
    pairs = write_channel(tmp_path / "data", 2)
    cache = new_cache(tmp_path / "cache")
    for pair in pairs:
        read_pair(pair, 5, cache=cache)
    (tmp_path / "cache" / "bytes").write_bytes(b"\xff" * 8)
    old, new = (tmp_path / "cache" / f".{name}.1.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(bytes(100))
    os.utime(old, (time.time() - 7200,) * 2)
    assert new_cache(tmp_path / "cache").used_bytes() == 2 * SIZE + 100
    assert not old.exists()
    assert new.exists()


@pytest.mark.slow
def test_a_copy_in_another_process_shares_the_folder(tmp_path: Path) -> None:
    pair = write_channel(tmp_path / "data", 1)[0]
    read_pair(pair, 5, cache=new_cache(tmp_path / "cache"))
    code = (
        "import sys; from pathlib import Path; from pspnet.data.cache.sample_cache import ImageCache\n"
        "from pspnet.data.channels import Pair\n"
        "cache = ImageCache(Path(sys.argv[1]), 10**9)\n"
        "print(cache.read(Pair(Path(sys.argv[2]), Path(sys.argv[3])))[0].sum())"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache"), str(pair.image), str(pair.annotation)]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str(read_pair(pair, 5)[0].sum()), done.stderr


# --- the folder ----------------------------------------------------------------------------------------------------


def test_none_and_disk(tmp_path: Path) -> None:
    assert open_cache("none", 1.0, "") is None
    cache = open_cache("disk", 0.5, str(tmp_path / "a" / "b"))
    assert cache is not None
    assert (cache.folder, cache.limit_bytes) == (tmp_path / "a" / "b", 500_000_000)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache_dir: .*file cannot be used \(.*\); give a writable folder"):
        open_cache("disk", 1.0, str(tmp_path / "file"))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
def test_memory_is_shared_limited_and_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_folder, "_TMPFS", tmp_path / "shm")
    at_exit: list[Any] = []
    monkeypatch.setattr(cache_folder.atexit, "register", lambda *call: at_exit.append(call))
    monkeypatch.setattr(cache_folder, "available_memory", lambda: 40 * SIZE)
    (tmp_path / "shm").mkdir()
    pairs = write_channel(tmp_path / "data", 2)
    first = open_cache("memory", 1.0, "")
    assert first is not None
    assert first.limit_bytes == 20 * SIZE
    assert "less than cache_limit_gb 1: half of the free memory and of" in capsys.readouterr().err
    read_pair(pairs[0], 5, cache=first)
    second = open_cache("memory", 1e-6, "", announce=False)  # another run while the first one continues
    assert second is not None
    assert second.limit_bytes == 1000
    assert second.read(pairs[0]) is not None
    (end, *first_arguments), (_, *second_arguments) = at_exit
    end(*first_arguments)
    assert cached_files(first.folder) == 1  # the second run still uses it
    os.close(first_arguments[1])
    end(*second_arguments)
    assert cached_files(first.folder) == 0
    read_pair(pairs[0], 5, cache=first)
    os.close(second_arguments[1])
    third = open_cache("memory", 1.0, "", announce=False)  # after a run that was killed
    assert third is not None
    assert third.used_bytes() == 0


def test_memory_needs_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "_TMPFS", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"memory needs Linux's .*; use --cache_images disk"):
        open_cache("memory", 1.0, "")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3_000_320),
        ({"memory.max": "max", "memory.current": "5"}, 3_000_320),
        ({"memory.max": "1000000", "memory.current": "400000"}, 600_000),
        ({"memory.max": "1000", "memory.current": "4000"}, 0),
        ({"memory/memory.limit_in_bytes": "900000", "memory/memory.usage_in_bytes": "1"}, 899_999),
    ],
)
def test_a_containers_memory_limit(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2930 kB\n")
    assert available_memory(tmp_path, tmp_path / "meminfo") == expected
