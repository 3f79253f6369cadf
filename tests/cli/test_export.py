"""`pspnet export` on the command line: output, files and error messages."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.artifact.export_record import load_export
from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.cli.dispatch import dispatch
from pspnet.config.schema import Config
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(num_classes=7, class_names="shapes", data="shapes", width=4, use_pretrained_model=False)
    folder = tmp_path_factory.mktemp("model")
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    return folder


def export(*arguments: object) -> int:
    return run_guarded(dispatch, ["export", *map(str, arguments)])


@pytest.mark.slow
def test_export_prints_its_verification(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert export(model_dir, "--format", "torchscript", "--images", tmp_path) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Compared with PyTorch on images given (1x40x50, 2x39x49, 1x32x50): logits differ by")
    assert printed[1].startswith(f"Written: {model_dir / 'exports' / 'torchscript-float32'} (")
    assert load_export(model_dir, "torchscript").record.check["images"] == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--format", "openvino", "--int8"], "calibration: missing; int8 needs a data set"),
        (["--format", "onnx", "--calibration", "data"], "calibration: is for 8-bit graphs (flag --calibration); add"),
        (["--format", "onnx", "--allow-loss"], "allow_loss: is for 8-bit graphs"),
        (["--format", "onnx", "--ignore", "0"], "ignore: is for 8-bit graphs"),
        (["--format", "onnx", "--scored-images", "0"], "scored_images: found '0' (flag --scored-images); allowed"),
        (["--format", "torchscript", "--int8", "--calibration", "data"], "torchscript has no 8-bit form here"),
    ],
)
def test_wrong_settings_give_an_error_message(
    model_dir: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(model_dir, *options) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert text in printed
    assert "Traceback" not in printed


def test_a_missing_package_is_reported(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    pytest.importorskip("onnx")
    assert export(model_dir, "--format", "onnx") == 2
    printed = capsys.readouterr().err
    assert "--format onnx needs the package onnxruntime, which cannot be imported" in printed
    assert printed.endswith("pip install 'pspnet[onnx]'.\n")


def test_missing_images_and_data(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(model_dir, "--format", "torchscript", "--images", tmp_path / "none") == 1
    assert "no such image file" in capsys.readouterr().err
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    assert export(model_dir, "--format", "openvino", "--int8", "--calibration", tmp_path) == 1
    assert "has no folder train or validation" in capsys.readouterr().err
