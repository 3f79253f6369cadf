"""Checkpoints: bit-exact round trip and atomic writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from pspnet.errors import WeightsError
from pspnet.system.atomic_files import atomic_write
from pspnet.training.state import checkpoint
from pspnet.training.state.checkpoint import load_checkpoint, save_checkpoint


def assert_same(first: Any, second: Any) -> None:
    """Equal in type, order, bits and, for tensors, data type and shape."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_same(one, other)
    elif isinstance(first, float):
        assert first.hex() == second.hex()
    else:
        assert first == second


def test_nested_state_round_trip(tmp_path: Path) -> None:
    state = {
        "none": None,
        "bools": [True, False],
        "numbers": [0, -7, 2**62, 0.1, 1e-320, -0.0, math.pi, math.inf],
        "text": 'ümlaut "quoted"\nline / slash',
        "tuple": (1, (2.5, None), []),
        "empty": {},
        "int keys": {0: "zero", 10: {3: torch.tensor(3)}},
        "tensors": {
            "scalar": torch.tensor(5, dtype=torch.int64),
            "half": torch.tensor([1.5, float("nan")], dtype=torch.float16)[:1],
            "bytes": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
            "no elements": torch.zeros(0, 4),
            "double": torch.rand(3, dtype=torch.float64),
        },
    }
    save_checkpoint(tmp_path / "a" / "b" / "state.safetensors", state)
    assert_same(load_checkpoint(tmp_path / "a" / "b" / "state.safetensors"), state)


def test_nan_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "nan", {"number": math.nan, "tensor": torch.tensor([math.nan, 1.0])})
    state = load_checkpoint(tmp_path / "nan")
    assert math.isnan(state["number"])
    assert state["tensor"].isnan().tolist() == [True, False]


def test_tensors_with_shared_memory_or_channels_last_layout_are_saved_by_value(tmp_path: Path) -> None:
    weight = torch.rand(4, 3, 5, 5)
    state = {
        "channels_last": weight.to(memory_format=torch.channels_last),
        "same": weight,
        "again": weight,
        "view": weight[1:3, :, ::2],
        "transposed": weight[0, 0].t(),
        "with gradient": nn.Parameter(weight),
    }
    save_checkpoint(tmp_path / "state", state)
    loaded = load_checkpoint(tmp_path / "state")
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].is_contiguous(), name


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "RMSprop"])
def test_optimizer_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        return network, getattr(torch.optim, name)(network.parameters(), lr=0.01, **options)

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()

    images = torch.rand(6, 2, 3, 8, 8)
    network, optimizer = build()
    for batch in images[:3]:
        train(network, optimizer, batch)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path / "last", state)
    for batch in images[3:]:
        train(network, optimizer, batch)

    resumed, resumed_optimizer = build()
    loaded = load_checkpoint(tmp_path / "last")
    assert all(isinstance(key, int) for key in loaded["optimizer"]["state"])
    resumed.load_state_dict(loaded["network"])
    resumed_optimizer.load_state_dict(loaded["optimizer"])
    for batch in images[3:]:
        train(resumed, resumed_optimizer, batch)
    assert_same(dict(resumed.state_dict()), dict(network.state_dict()))


def test_missing_file_error_lists_the_values_of_resume(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.safetensors: no such checkpoint\. `--resume` takes `auto`, `never`"):
        load_checkpoint(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_file_is_reported_as_damaged(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"weights": torch.rand(100)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        WeightsError, match=r"last\.safetensors: the checkpoint is damaged or truncated .*`--resume never`"
    ):
        load_checkpoint(path)


def test_file_of_another_kind_is_reported_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(2000))
    with pytest.raises(WeightsError, match="damaged or truncated"):
        load_checkpoint(path)


def test_state_that_is_not_json_is_reported_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_file({"x": torch.zeros(1)}, str(path), metadata={"format": checkpoint.FORMAT, "state": "{"})
    with pytest.raises(WeightsError, match="damaged or truncated"):
        load_checkpoint(path)
    save_file({"x": torch.zeros(1)}, str(path), metadata={"format": checkpoint.FORMAT})
    with pytest.raises(WeightsError, match="damaged or truncated"):
        load_checkpoint(path)


def test_weights_of_a_model_directory_are_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, str(path), metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"not a checkpoint of this program \(expected .*, found 'pt'\).*with `--model` instead"
    ):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(2)}, str(path))
    with pytest.raises(WeightsError, match="found None"):
        load_checkpoint(path)


def test_a_failed_write_keeps_only_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"epoch": 1, "weights": torch.ones(3)})

    def full_disk(tensors: dict[str, torch.Tensor], name: str, metadata: dict[str, str]) -> None:
        Path(name).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(
        OSError, match=r"could not be written \(.*No space left.*Free some space or give another folder"
    ):
        save_checkpoint(path, {"epoch": 2, "weights": torch.zeros(3)})
    assert_same(load_checkpoint(path), {"epoch": 1, "weights": torch.ones(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


def test_folder_that_is_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(OSError, match="checkpoints"):
        save_checkpoint(tmp_path / "checkpoints" / "last.safetensors", {"epoch": 1})


def test_replacement_keeps_the_old_file_on_any_exception(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
