"""Export of a model directory: written files, replacement of older exports, clean-up after failures."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.artifact.export_record import Export, hash_weights, load_export
from pspnet.errors import DataError, WeightsError
from pspnet.exporting import torch_script
from pspnet.exporting.export_network import ExportNetwork
from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.exporter import export_model
from pspnet.exporting.verification import ExportError


def quiet(line: str) -> None:
    pass


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_an_export_and_its_record(model_dir: Path, exported: Callable[[str], Export]) -> None:
    exported("torchscript")
    export = load_export(model_dir, "torchscript")
    assert export.folder == model_dir / "exports" / "torchscript-float32"
    assert tree(export.folder) == ["export.json", "model.ts"]
    record = export.record
    assert record.weights_sha256 == hash_weights(model_dir)
    assert (record.num_classes, record.align_corners, record.int8) == (7, False, {})
    assert record.files == {"model.ts": export.path.stat().st_size}
    assert record.versions["torch"] == torch.__version__
    assert record.check["passed"] is True
    assert record.check["source"] == "generated scenes"
    assert record.check["logits_difference"] < 1e-4


@pytest.mark.slow
def test_verification_uses_the_given_images(model_dir: Path, tmp_path: Path) -> None:
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(paths[-1])
    lines: list[str] = []
    request = ExportRequest(model_dir=model_dir, format="torchscript", output=tmp_path / "out", images=paths)
    record = export_model(request, lines.append).record
    assert record.check["source"] == "images given"
    assert record.check["images"] == 4
    assert record.check["cases"] == [[1, 40, 50]] * 4 + [[2, 39, 49], [1, 32, 50]]
    assert "Compared with PyTorch on images given (1x40x50, " in lines[0]
    assert tree(tmp_path / "out") == ["export.json", "model.ts"]


@pytest.mark.slow
def test_an_older_export_is_replaced(model_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "exports" / "mine"
    for _ in range(2):
        export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=output), quiet)
        assert tree(tmp_path / "exports") == ["mine", "mine/export.json", "mine/model.ts"]
        (output / "left.txt").write_text("of the older one")


def test_other_folders_are_not_overwritten(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(DataError, match=r"^--output: .* is not an export; use another folder"):
        export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=tmp_path), quiet)
    assert tree(tmp_path) == ["diary.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("output", [".", ""])
def test_the_current_folder_as_output(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "here").mkdir()
    for _ in range(2):
        monkeypatch.chdir(tmp_path / "here")
        export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=Path(output)), quiet)
        assert tree(tmp_path) == ["here", "here/export.json", "here/model.ts"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("dear")
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(DataError, match=r"other is not an export"):
        export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=Path(output)), quiet)


@pytest.mark.slow
def test_a_folder_that_cannot_be_replaced_is_reported(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    rmdir, rename = Path.rmdir, Path.rename

    def busy(path: Path, *arguments: Path) -> None:
        if path == output:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        (rename if arguments else rmdir)(path, *arguments)

    for held in (False, True):  # an empty folder, then an export; both like a mounted volume
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rmdir", busy)
            patch.setattr(Path, "rename", busy)
            with pytest.raises(DataError, match=r"out: cannot be written \(Device or resource busy"):
                export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=output), quiet)
        assert (output / "export.json").is_file() is held
        assert tree(tmp_path)[0] == "out"
        if not held:
            export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=output), quiet)


@pytest.mark.slow
def test_a_failed_verification_keeps_the_older_export(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=output), quiet)
    before = json.loads((output / "export.json").read_text())
    write = torch_script.write

    def spoil(network: ExportNetwork, folder: Path) -> str:
        network.mean = network.mean + 5
        return write(network, folder)

    monkeypatch.setattr(torch_script, "write", spoil)
    for target in (output, tmp_path / "new"):
        with pytest.raises(ExportError, match=r"^torchscript export: the output of the graph differs"):
            export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=target), quiet)
    assert tree(tmp_path) == ["out", "out/export.json", "out/model.ts"]
    assert json.loads((output / "export.json").read_text()) == before


def test_a_full_disk_is_reported(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pspnet.exporting import exporter

    def fail(network: ExportNetwork, folder: Path) -> str:
        (folder / "model.ts").write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch_script, "write", fail)
    with pytest.raises(RuntimeError, match="unexpected pos"):  # the disk is not full: a bug keeps its traceback
        export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=tmp_path / "out"), quiet)
    monkeypatch.setattr(exporter, "_LITTLE_SPACE", 2**70)
    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device: .* Free some space"):
        export_model(ExportRequest(model_dir=model_dir, format="torchscript", output=tmp_path / "out"), quiet)
    assert tree(tmp_path) == []


@pytest.mark.slow
def test_a_rejected_8_bit_graph_leaves_no_files(model_dir: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    from pspnet.exporting import exporter

    def refuse(*arguments: object) -> None:
        raise ExportError("int8 costs 9.00 points")

    monkeypatch.setattr(exporter, "quantise", refuse)
    with pytest.raises(ExportError, match="int8 costs"):
        export_model(
            ExportRequest(
                model_dir=model_dir, format="openvino", output=model_dir / "refused", int8=True, calibration=data
            ),
            quiet,
        )
    assert not list(model_dir.glob("*refused*"))


def test_other_folders_are_refused_as_models(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a model directory"):
        export_model(ExportRequest(model_dir=tmp_path, format="torchscript"), quiet)
    assert tree(tmp_path) == []
