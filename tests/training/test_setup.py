"""Runs with networks other than PSPNet: the built-in algorithm's others, and a foreign one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pspnet.artifact.model_directory import load_artifact
from pspnet.config.schema import Config
from pspnet.data.shapes import write_shapes
from pspnet.errors import WeightsError
from pspnet.inference.predictor import Predictor
from pspnet.models.torchvision_networks import DeepLabV3
from pspnet.system.signals import StopRequest
from pspnet.training.loop import Trainer, train
from pspnet.training.network import build_network
from pspnet.training.run_log import RunLog
from pspnet.training.setup import build_run

# Plain gradient descent has no state, so checkpoints of the full-width network stay small.
SMALL: dict[str, Any] = {
    "num_classes": 7, "use_pretrained_model": False, "crop_size": 32, "base_size": 64, "epochs": 1, "momentum": 0,
    "mini_batch_size": 1, "max_train_images": 2, "learning_rate": 0.01, "workers": 0, "device": "cpu",
    "precision": "float32", "progress": "lines", "log_every": 1, "tensorboard": False, "sample_images": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=3, validation=1, size=(64, 48))
    return folder


def small_config(shapes: Path, run: Path, **changes: Any) -> Config:
    folders = {"output_dir": str(run), "model_dir": str(run / "model"), "checkpoint_dir": str(run / "checkpoints")}
    return Config(**{**SMALL, "data": str(shapes), **folders, **changes})


@pytest.mark.slow
def test_another_algorithm_trains_resumes_predicts_and_is_fine_tuned(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, tmp_path / "first", algorithm="deeplab")
    assert train(config).exit_code == 0
    assert capsys.readouterr().out.startswith("DeepLabV3 resnet-50, 7 classes, 42.0 M parameters")
    assert len(train(config.replace(epochs=2)).history) == 2
    assert "Resuming from" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="algorithm was deeplab and is now psp"):
        train(config.replace(algorithm="psp"))

    model_dir = tmp_path / "first" / "model"
    content = json.loads((model_dir / "config.json").read_text())
    assert content["algorithm"] == "deeplab"
    assert sorted(content["architecture"]) == ["auxiliary_head", "backbone", "mean", "num_classes", "std"]
    assert (model_dir / "code" / "requirements.txt").read_text().splitlines()[1:] == ["safetensors>=0.4", "torchvision"]
    artifact = load_artifact(model_dir)
    assert artifact.algorithm == "deeplab"
    assert isinstance(artifact.model, DeepLabV3)
    image = np.full((40, 50, 3), 90, dtype=np.uint8)
    with torch.no_grad():
        expected = artifact.model(torch.from_numpy(image).permute(2, 0, 1)[None]).argmax(1)[0]
    assert (Predictor.load(model_dir, device="cpu")(image) == expected.numpy()).all()

    incremental = small_config(shapes, tmp_path / "second", algorithm="deeplab", model=str(model_dir), seed=9)
    network = build_network(incremental, torch.device("cpu"))
    for name, value in artifact.model.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    wrong = small_config(shapes, tmp_path / "second", algorithm="psp", model=str(model_dir), width=4)
    message = r"holds another architecture: algorithm is deeplab there and psp here\. Incremental training needs"
    with pytest.raises(WeightsError, match=message):
        build_network(wrong, torch.device("cpu"))


class OneLayer(nn.Module):
    """Foreign network without an auxiliary head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.float() / 255)


def test_a_foreign_network_is_trained_by_the_same_loop(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path)
    run = build_run(config, build=lambda config, device: OneLayer(config.num_classes).to(device))
    before = run.network.layer.weight.detach().clone()
    log = RunLog(tmp_path, silent=True)
    trainer = Trainer(run, log, StopRequest())
    assert trainer.fit()
    assert not torch.equal(run.network.layer.weight, before)
    assert [entry["epoch"] for entry in trainer.history] == [1]
