"""`pspnet evaluate` on a tiny model and tiny data, with good and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.cli import dispatch
from pspnet.config import Config
from pspnet.data.shapes import write_shapes
from pspnet.entry import run_guarded
from pspnet.models.pspnet import build_model
from pspnet.serving.artifact import architecture_of, save_artifact
from pspnet.serving.predictor import Predictor


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=1, validation=5, size=(72, 48))
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(num_classes=7, class_names="shapes", data="shapes", width=4, use_pretrained_model=False)
    folder = tmp_path_factory.mktemp("model")
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    return folder


def evaluate(model_dir: Path, shapes: Path, output: Path, *more: str) -> int:
    folders = ["--images", str(shapes / "validation"), "--annotations", str(shapes / "validation_annotation")]
    return run_guarded(dispatch, ["evaluate", str(model_dir), *folders, "--output", str(output), *more])


def test_evaluate_writes_the_scores_of_the_predicted_masks(
    model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model_dir, shapes, tmp_path / "scores", "--workers", "0") == 0
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert list(metrics) == [
        "mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "per_class_iou", "pixels", "images",
    ]  # fmt: skip
    predictor = Predictor.load(model_dir, device="cpu")
    correct = total = 0
    for path in sorted((shapes / "validation").iterdir()):
        truth = np.asarray(Image.open(shapes / "validation_annotation" / f"{path.stem}.png"))
        correct += int((predictor(path)[truth != 255] == truth[truth != 255]).sum())
        total += int((truth != 255).sum())
    assert metrics["images"] == 5
    assert metrics["pixels"] == total
    assert metrics["pixel_accuracy"] == correct / total
    assert list(metrics["per_class_iou"]) == ["background", "disc", "square", "triangle", "ring", "cross", "star"]
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "commonest class" in printed


def test_evaluate_names_what_is_wrong(
    model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, shapes, tmp_path / "out") == 1
    assert "not a model directory" in capsys.readouterr().err
    assert evaluate(model_dir, shapes, tmp_path / "out", "--workers", "many") == 1
    assert "--workers: found 'many'; expected auto" in capsys.readouterr().err
    assert evaluate(model_dir, tmp_path / "nowhere", tmp_path / "out") == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert evaluate(model_dir, shapes, tmp_path / "file" / "out") == 1
    assert "cannot be made" in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()
