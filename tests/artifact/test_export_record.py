"""The record of an export: round trip and rejection of missing, damaged, foreign and outdated exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pspnet.artifact.export_record import ExportRecord, hash_weights, load_export
from pspnet.errors import WeightsError


def model_with_export(folder: Path, name: str = "onnx-float32", **changes: Any) -> Path:
    """Create a model directory with an export whose record is valid except for `changes`."""
    (folder / "model.safetensors").write_bytes(b"weights")
    export = folder / "exports" / name
    export.mkdir(parents=True, exist_ok=True)
    (export / "model.onnx").write_bytes(b"graph")
    values: dict[str, Any] = {
        "format": name.split("-")[0],
        "precision": name.split("-")[1],
        "file": "model.onnx",
        "weights_sha256": hash_weights(folder),
        "align_corners": True,
        "num_classes": 21,
        "versions": {"torch": "2.1.0"},
        "check": {"passed": True, "cases": [[1, 32, 32]]},
        "int8": {},
        "files": {"model.onnx": 5},
    }
    ExportRecord(**{**values, **changes}).write(export)
    return folder


def edit(model_dir: Path, **changes: Any) -> Path:
    path = model_dir / "exports" / "onnx-float32" / "export.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return model_dir


def test_round_trip(tmp_path: Path) -> None:
    model_with_export(tmp_path)
    export = load_export(tmp_path, "onnx")
    assert export.record == ExportRecord(
        "onnx", "float32", "model.onnx", hash_weights(tmp_path), True, 21, {"torch": "2.1.0"},
        {"passed": True, "cases": [[1, 32, 32]]}, {}, {"model.onnx": 5},
    )  # fmt: skip
    assert export.path == tmp_path / "exports" / "onnx-float32" / "model.onnx"
    assert not list(export.folder.glob(".*"))


def test_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert hash_weights(tmp_path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_missing_export_reports_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no openvino export in int8\. .* --format openvino --int8 --calib"):
        load_export(tmp_path, "openvino", "int8")


def test_other_weights_are_rejected(tmp_path: Path) -> None:
    model_with_export(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(WeightsError, match=r"was exported from other weights .* present .* Export again: `pspnet exp"):
        load_export(tmp_path, "onnx")


def test_truncated_or_missing_graph_is_rejected(tmp_path: Path) -> None:
    model_with_export(tmp_path)
    graph = tmp_path / "exports" / "onnx-float32" / "model.onnx"
    graph.write_bytes(b"gra")
    with pytest.raises(WeightsError, match=r"model.onnx: has 3 of 5 bytes, so this export is incomplete. Export again"):
        load_export(tmp_path, "onnx")
    graph.unlink()
    with pytest.raises(WeightsError, match=r"model.onnx: is missing, so this export is incomplete"):
        load_export(tmp_path, "onnx")


def test_missing_weights_are_rejected(tmp_path: Path) -> None:
    model_with_export(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model.safetensors: cannot be read \(No such file"):
        load_export(tmp_path, "onnx")


def test_record_of_another_export_is_rejected(tmp_path: Path) -> None:
    edit(model_with_export(tmp_path), precision="int8")
    with pytest.raises(WeightsError, match=r"onnx-float32: its export.json describes onnx-int8"):
        load_export(tmp_path, "onnx")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": "other-2"}, "expected the format pspnet-export-1, found 'other-2'"),
        ({"format_version": ...}, "expected the format pspnet-export-1, found None"),
        ({"format": "tflite"}, "`format` is 'tflite': expected one of onnx, openvino, torchscript, torch_export."),
        ({"precision": 8}, "`precision` is 8: expected one of float32, int8."),
        ({"file": "../../secret"}, "`file` is '../../secret': expected the name of a file in its folder."),
        ({"file": ""}, "`file` is '': expected the name"),
        ({"weights_sha256": "ab"}, "`weights_sha256` is 'ab': expected 64 hexadecimal digits."),
        ({"align_corners": "yes"}, "`align_corners` is 'yes': expected true or false."),
        ({"num_classes": 0}, "`num_classes` is 0: expected a whole number from 1 to 254."),
        ({"num_classes": True}, "`num_classes` is True"),
        ({"versions": []}, r"`versions` is \[\]: expected a mapping."),
        ({"check": ...}, "`check` is missing."),
        ({"files": {"a/b": 1}}, "`files` is .*: expected a mapping of file names to sizes."),
        ({"files": {"a": "1"}}, "`files` is"),
    ],
)
def test_invalid_values_are_reported(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    edit(model_with_export(tmp_path), **changes)
    with pytest.raises(WeightsError, match=text):
        load_export(tmp_path, "onnx")


@pytest.mark.parametrize("content", ["{", "[1]", "", "null", "[" * 100_000])
def test_invalid_records_are_rejected(tmp_path: Path, content: str) -> None:
    model_with_export(tmp_path)
    (tmp_path / "exports" / "onnx-float32" / "export.json").write_text(content)
    with pytest.raises(WeightsError, match=r"export.json: .* Export again"):
        load_export(tmp_path, "onnx")


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    edit(model_with_export(tmp_path), note="later")
    assert load_export(tmp_path, "onnx").record.num_classes == 21
