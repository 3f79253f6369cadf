"""torch.save files are read without running any code that they name."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pspnet.errors import WeightsError
from pspnet.models.imports import torch_file
from pspnet.models.imports.inert_pickle import Placeholder, StoredTensor, read_untrusted
from pspnet.models.imports.torch_file import read_torch_file


class Buffer:
    """Foreign class with a state, like mmengine's HistoryBuffer."""

    def __init__(self) -> None:
        self.values = np.array([1.5])


class Mapping(dict):  # type: ignore[type-arg]
    """Foreign dict, like mmengine's ConfigDict."""


class Many(list):  # type: ignore[type-arg]
    """Foreign list."""


class Attack:
    """Creates a folder when it is unpickled by pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def state() -> dict[str, Tensor]:
    base = torch.arange(24.0)
    return {
        "a.weight": base.view(2, 3, 4),
        "a.view": base[6:18].view(3, 4).t(),  # shares its storage with the first, and is not contiguous
        "b.half": torch.tensor([1.5, -2.0]).half(),
        "b.bfloat": torch.tensor([1.5, -2.0]).bfloat16(),
        "b.count": torch.tensor(7),
        "b.empty": torch.zeros(0, 3),
        "c.parameter": nn.Parameter(torch.tensor([3.0])),
    }


def checkpoint(foreign: Any) -> dict[str, Any]:
    return {
        "meta": {"cfg": "model = dict()", "time": "now", "loss": np.float64(0.5)},
        "state_dict": OrderedDict(state()),
        "message_hub": {"foreign": foreign, "set": {1, 2}, "counts": defaultdict(int, a=1)},
        "optimizer": {"state": {0: {"momentum": torch.full((1000,), 0.25)}}},
    }


FOREIGN = [Buffer(), Mapping(a=Buffer()), Many([1, Buffer()]), np.arange(3), {np.int64(3): Buffer}]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["weights_only", "inert"])
def test_every_tensor_is_read(zipped: bool, known: bool, tmp_path: Path) -> None:
    content = {"state_dict": state(), "epoch": 3} if known else checkpoint(FOREIGN)
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "a.pth")
    for name, expected in state().items():
        assert found.state[name].dtype == expected.dtype, name
        assert torch.equal(found.state[name], expected), name
    assert list(found.state) == list(state())
    if not known:
        assert (found.meta["cfg"], found.meta["time"]) == ("model = dict()", "now")


@pytest.mark.parametrize("zipped", [True, False])
def test_reader_without_weights_only(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 1.12 has no weights_only."""
    monkeypatch.setattr(torch_file.torch, "load", lambda path: pytest.fail("torch.load was called"))
    torch.save(state(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "a.pth").state
    assert all(torch.equal(found[name], expected) for name, expected in state().items())


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_file_is_called(zipped: bool, tmp_path: Path) -> None:
    torch.save(checkpoint(Attack(tmp_path / "made")), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_torch_file(tmp_path / "a.pth").state["b.count"], torch.tensor(7))
    assert not (tmp_path / "made").exists()
    content, _ = read_untrusted(tmp_path / "a.pth", lambda content: {})
    assert type(content["message_hub"]["foreign"]) is Placeholder
    assert type(content["meta"]["loss"]) is Placeholder
    assert type(content["optimizer"]["state"][0]["momentum"]) is StoredTensor


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch made'\ntR.",
        b'cbuiltins\neval\n(S\'open("made", "w")\'\ntR.',
        b"(S'touch made'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch made'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nS'touch made'\n\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch made\x85R.",  # STACK_GLOBAL
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}S'__defaults__'\nN\x86s\x86b.",  # BUILD on a substitute
        b"\x80\x02ccollections\nOrderedDict\nN}S'pop'\nNs\x86b.",  # BUILD on a class
    ],
)
def test_no_opcode_reaches_a_function(code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", code)
    pop = OrderedDict.pop
    with pytest.raises(WeightsError, match=r"has no state dict, but a|damaged or truncated"):
        read_torch_file(tmp_path / "a.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]
    assert OrderedDict.pop is pop


def test_invalid_storage(tmp_path: Path) -> None:
    class Fake(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            return ("storage", "no type", "0", "cpu", 5) if isinstance(value, Buffer) else None

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive, archive.open("a/data.pkl", "w") as file:
        Fake(file, 2).dump({"w": Buffer()})
    with pytest.raises(WeightsError, match="damaged or truncated"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.999])
def test_truncated(zipped: bool, known: bool, fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state() if known else checkpoint(FOREIGN), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(
        WeightsError, match=r"a\.pth: damaged or truncated \(.+\)\. Copy or download it again\."
    ) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_are_detected(tmp_path: Path) -> None:
    """Every damaged byte is either detected or changes only values."""
    path = tmp_path / "a.pth"
    torch.save(checkpoint(Buffer()), path)
    content = path.read_bytes()
    for position in range(0, len(content), 61):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            found = read_torch_file(path).state
        except WeightsError:
            continue
        assert all(found[name].shape == value.shape for name, value in state().items())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "an empty file"),
        (b"<html>Sign in</html>", "a text file, possibly the web page of a failed download"),
        (b"\x12\x01\x00\x00\x00\x00\x00\x00" + bytes(90), "an MXNet parameter file; use `--from gluoncv`"),
        (b"\x1f\x8b\x08" + bytes(90), "a gzip archive"),
        (b"\x80\x04\x95" + bytes(90), "not a known weights file"),
    ],
)
def test_other_file_types(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=text):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "has no state dict, but a list"),
        ({}, "has no state dict, but nothing"),
        ({"epoch": 1, "net": 2}, "has no state dict, but entries epoch, net"),
        ({"state_dict": {"a": torch.zeros(1), "b": "text"}}, "has no state dict, but entries state_dict"),
    ],
)
def test_contents_without_a_state_dict(content: Any, text: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=text):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_folders_and_missing_files(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), str(tmp_path / "script.pt"))
    with pytest.raises(WeightsError, match=r"a TorchScript program, which is not supported\. Save model\.state_dict"):
        read_torch_file(tmp_path / "script.pt")
    with pytest.raises(WeightsError, match="a folder; expected a weights file"):
        read_torch_file(tmp_path)
    with pytest.raises(WeightsError, match=r"none\.pth: cannot be read \(No such file"):
        read_torch_file(tmp_path / "none.pth")


def test_prefix_of_data_parallel_is_dropped(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "module.b.module.c": torch.zeros(1)}, tmp_path / "a.pth")
    assert list(read_torch_file(tmp_path / "a.pth").state) == ["a", "b.module.c"]


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(5)}, str(tmp_path / "a.safetensors"))
    assert torch.equal(read_torch_file(tmp_path / "a.safetensors").state["a"], torch.ones(5))
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(WeightsError, match="damaged or truncated"):
        read_torch_file(tmp_path / "a.safetensors")
