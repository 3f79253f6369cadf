"""Fingerprints and provenance.json."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from pspnet.data.channels import Pair
from pspnet.errors import DataError
from pspnet.evaluation.provenance import (
    data_fingerprint,
    describe_device,
    read_provenance,
    versions,
    write_provenance,
)


def pairs_in(folder: Path, contents: dict[str, tuple[bytes, bytes]]) -> list[Pair]:
    folder.mkdir()
    pairs = []
    for name, (image, annotation) in contents.items():
        pair = Pair(folder / f"{name}.jpg", folder / f"{name}_target.png")
        pair.image.write_bytes(image)
        pair.annotation.write_bytes(annotation)
        pairs.append(pair)
    return pairs


def test_the_fingerprint_depends_on_names_and_bytes(tmp_path: Path) -> None:
    contents = {"b": (b"image b", b"target b"), "a": (b"image a", b"target a")}
    pairs = pairs_in(tmp_path / "data", contents)
    found = data_fingerprint(pairs)
    lines = "".join(f"{name} {hashlib.sha256(contents[name][0]).hexdigest()}\n" for name in ("a", "b"))
    assert found["count"] == 2
    assert found["images"] == hashlib.sha256(lines.encode()).hexdigest()
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copied = [Pair(tmp_path / "copy" / pair.image.name, tmp_path / "copy" / pair.annotation.name) for pair in pairs]
    assert data_fingerprint(list(reversed(copied))) == found
    copied[0].annotation.write_bytes(b"target c")
    changed = data_fingerprint(copied)
    assert changed["images"] == found["images"]
    assert changed["annotations"] != found["annotations"]


def test_provenance_round_trip(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {}
    write_provenance(tmp_path, {"command": "pspnet evaluate", "ignore": 255})
    found = read_provenance(tmp_path)
    assert (found["command"], found["ignore"]) == ("pspnet evaluate", 255)
    assert found["versions"]["torch"] == torch.__version__
    assert found["date"].endswith("+00:00")
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"provenance\.json: not readable as JSON"):
        read_provenance(tmp_path)


def test_machine_and_versions_are_recorded() -> None:
    assert {"pspnet", "torch", "numpy", "python"} <= set(versions())
    assert describe_device(torch.device("cpu")).endswith(f"{torch.get_num_threads()} threads")
