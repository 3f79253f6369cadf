"""torch.save files are read without running any code that they name."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pspnet.errors import WeightsError
from pspnet.models.imports.torch_file import read_torch_file
from pspnet.models.inert_pickle import LEGACY_START, Placeholder, load_inert


class Buffer:
    """Foreign class with a state, like mmengine's HistoryBuffer."""

    def __init__(self) -> None:
        self.values = np.array([1.5])


class Mapping(dict):  # type: ignore[type-arg]
    """Foreign dict, like mmengine's ConfigDict."""


class Many(list):  # type: ignore[type-arg]
    """Foreign list."""


class Attack:
    """Calls a function when it is unpickled by pickle."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


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


FOREIGN = [
    Buffer(),
    Mapping(a=Buffer()),
    Many([1, Buffer()]),
    {np.int64(3): Buffer},
    argparse.Namespace(lr=0.1, path=Path("a")),
    [np.arange(3), np.array(["a"], dtype=object), np.float32(1), np.dtype("int8"), np.bool_(True)],
    np.random.RandomState(0),
    np.random.default_rng(0),
]
CODE = [
    b"cos\nsystem\n(S'touch made'\ntR.",
    b'cbuiltins\neval\n(S\'open("made", "w")\'\ntR.',
    b"(S'touch made'\nios\nsystem\n.",  # INST
    b"(cos\nsystem\nS'touch made'\no.",  # OBJ
    b"\x80\x02cos\nsystem\nS'touch made'\n\x85\x81.",  # NEWOBJ
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch made\x85R.",  # STACK_GLOBAL
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}S'__defaults__'\nN\x86s\x86b.",  # BUILD on a substitute
    b"\x80\x02ccollections\nOrderedDict\nN}S'pop'\nNs\x86b.",  # BUILD on a class
    b"\x80\x02(S'module'\nccollections\nOrderedDict\nS'made'\nS'source'\ntQ.",  # source of a module, old files
    b"\x80\x02(S'storage'\nS'no type'\nS'0'\nS'cpu'\nK\x05tQ.",  # a storage of no type
]
formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def write_pickle(path: Path, code: bytes, zipped: bool) -> None:
    """Write a file of torch.save whose content is the pickle `code`."""
    torch.save(1, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        path.write_bytes(
            path.read_bytes().replace(pickle.dumps(1, 2) + pickle.dumps([], 2), code + pickle.dumps([], 2))
        )
        return
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, code if name.endswith("data.pkl") else content)


@formats
@pytest.mark.parametrize("known", [True, False], ids=["plain", "foreign"])
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


@formats
def test_nothing_in_the_file_is_called(zipped: bool, tmp_path: Path) -> None:
    made = tmp_path / "made"
    attacks = [
        Attack(os.mkdir, str(made)),
        Attack(os.system, f"touch {made}"),
        Attack(eval, f"open({str(made)!r}, 'w')"),
    ]
    torch.save(checkpoint(attacks), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_torch_file(tmp_path / "a.pth").state["b.count"], torch.tensor(7))
    content = load_inert(tmp_path / "a.pth")
    assert [type(value) for value in content["message_hub"]["foreign"]] == [Placeholder] * 3
    assert type(content["meta"]["loss"]) is Placeholder
    assert not made.exists()


@formats
@pytest.mark.parametrize("code", CODE)
def test_no_opcode_reaches_a_function(
    code: bytes, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "a.pth", code, zipped)
    pop = OrderedDict.pop
    with pytest.raises(WeightsError, match=r"has no state dict, but a (Placeholder|type)|damaged"):
        read_torch_file(tmp_path / "a.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]
    assert OrderedDict.pop is pop


def test_tar_archives_are_refused(tmp_path: Path) -> None:
    """torch.load would extract them, also if they begin like a legacy file."""
    with tarfile.open(tmp_path / "a.pth", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo(LEGACY_START.decode("latin-1")), io.BytesIO())
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert (tmp_path / "a.pth").read_bytes().startswith(LEGACY_START)
    with pytest.raises(WeightsError, match=r"a\.pth: not a file of torch\.save since PyTorch 0\.1\.10"):
        read_torch_file(tmp_path / "a.pth")


@formats
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
    torch.save(checkpoint(FOREIGN), path)
    content = path.read_bytes()
    for position in range(0, len(content), 97):
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
    with pytest.raises(WeightsError, match=r"a TorchScript program; it cannot be imported\. Save model"):
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
