"""Model directories and checkpoints of version 0.1.0 keep loading.

version_0_1_0.tar.xz holds a run of 0.1.0 (one epoch of two steps, resnet-50 of width 8, the shapes classes), whose
floating-point tensors were then replaced by `pattern` and saved again with 0.1.0's own functions.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import pspnet
from pspnet.classes import SHAPES_CLASSES, palette_for
from pspnet.data.shapes import write_shapes
from pspnet.training.state.checkpoint import load_checkpoint

ARCHIVE = Path(__file__).with_name("version_0_1_0.tar.xz")
SETTINGS = {
    "num_classes": 7, "class_names": "shapes", "width": 8, "crop_size": 32, "base_size": 64, "mini_batch_size": 2,
    "workers": 0, "device": "cpu", "precision": "float32", "use_pretrained_model": False, "tensorboard": False,
    "sample_images": 0, "progress": "lines", "max_steps_per_epoch": 2,
}  # fmt: skip


def pattern(name: str, value: torch.Tensor) -> torch.Tensor:
    values = (torch.arange(value.numel()) % 5 - 2).to(value.dtype) / 64
    return (values + 1 if name.endswith("running_var") else values).reshape(value.shape)


def assert_pattern(state: dict[str, torch.Tensor]) -> None:
    floating = {name: value for name, value in state.items() if value.is_floating_point()}
    assert len(floating) > 250
    for name, value in floating.items():
        assert torch.equal(value, pattern(name, value)), name


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder, in a current folder that holds its data."""
    folder = tmp_path / "runs" / "old"
    with tarfile.open(ARCHIVE) as tar:
        for member in tar:
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            target.write_bytes(content.read())
    write_shapes(tmp_path / "data", train=4, validation=2, size=(64, 48))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_model_directory_predicts(run: Path) -> None:
    content = json.loads((run / "model" / "config.json").read_text())
    assert content["versions"]["pspnet"] == "0.1.0"
    assert content["training"]["config"]["width"] == 8
    assert pspnet.Config(**content["training"]["config"]).crop_size == 32
    network = pspnet.load_model(run / "model")
    assert isinstance(network, pspnet.PSPNet)
    assert_pattern(network.state_dict())
    predictor = pspnet.Predictor.load(run / "model", "cpu")
    assert predictor.class_names == SHAPES_CLASSES
    np.testing.assert_array_equal(predictor.palette, palette_for(SHAPES_CLASSES))
    assert predictor(np.zeros((40, 56, 3), np.uint8)).shape == (40, 56)


@pytest.mark.slow
def test_a_checkpoint_resumes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last", "best"):
        assert_pattern(load_checkpoint(run / "checkpoints" / f"{name}.safetensors")["model"])
    before = json.loads((run / "model" / "config.json").read_text())["scores"]
    result = pspnet.train(data="data", name="old", epochs=1, **SETTINGS)
    assert "this run is already complete" in capsys.readouterr().out
    assert result.scores.mIOU == before["mIOU"]
    assert_pattern(pspnet.load_model(result.model_dir).state_dict())
    longer = pspnet.train(data="data", name="old", epochs=2, **SETTINGS)
    assert "Resuming from runs/old/checkpoints/last.safetensors: epoch 2, step 2." in capsys.readouterr().out
    assert [entry["epoch"] for entry in longer.history] == [1.0, 2.0]
