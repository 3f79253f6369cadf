"""Tests of loading a predictor by settings."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.config.schema import Config
from pspnet.errors import ConfigError, WeightsError
from pspnet.models.build import build_model
from pspnet.serving.loading import choose_serving_device, load_predictor
from pspnet.serving.serve_settings import ServeSettings


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    config = Config(num_classes=3, data="x", width=4, use_pretrained_model=False)
    model = tmp_path / "model"
    save_artifact(model, build_model(**architecture_of(config)), config, {}, {})
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "model.tar.gz", "w:gz") as tar:
        for path in model.iterdir():
            tar.add(path, path.name)
    return tmp_path / "packed"


def test_packed_model_runs_without_exports(packed: Path) -> None:
    settings = ServeSettings(model_dir=packed, device="cpu", threads=torch.get_num_threads())
    assert load_predictor(settings, 0).runtime.name == "eager"
    text = r"packed/model\.tar\.gz: the runtime openvino:int8 needs an export, and exports in a packed model are"
    with pytest.raises(WeightsError, match=text):
        load_predictor(settings.replace(runtime="openvino:int8"), 0)


def test_workers_are_assigned_to_gpus_round_robin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_serving_device("auto", slot).index for slot in range(3)] == [0, 1, 0]
    with pytest.raises(ConfigError, match="sees 2 GPUs"):
        choose_serving_device("cuda:2", 0)
