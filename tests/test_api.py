"""The public API: lazy imports, the examples of docs/api.md, types as a user's mypy --strict sees them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pspnet
from pspnet.data.shapes import write_shapes
from pspnet.errors import ConfigError, DataError, TrainingStoppedError, WeightsError
from pspnet.training import loop
from pspnet.training import train as train_module
from pspnet.training.state.position import Outcome

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "epochs": 1, "width": 8, "crop_size": 32, "base_size": 64, "mini_batch_size": 2, "workers": 0, "device": "cpu",
    "use_pretrained_model": False, "tensorboard": False, "sample_images": 0, "progress": "lines",
    "max_steps_per_epoch": 2,
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a small data set in data/."""
    write_shapes(tmp_path / "data", train=4, validation=2, size=(64, 48))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, pspnet; pspnet.Config; pspnet.read_masks; assert 'torch' not in sys.modules\n"
        "from pspnet import Predictor, train; assert callable(train) and callable(pspnet.evaluate)\n"
        "import pspnet.evaluation, pspnet.training, pspnet.exporting; assert callable(pspnet.train)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_every_public_name_exists() -> None:
    assert all(getattr(pspnet, name) is not None for name in pspnet.__all__)
    assert dir(pspnet) == pspnet.__all__
    with pytest.raises(AttributeError, match="module 'pspnet' has no attribute 'tain'"):
        pspnet.tain  # noqa: B018


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(train_module, "Config", lambda **settings: pspnet.Config(**{**settings, **TINY}))
    namespace: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL):
        exec(example, namespace)
    result, prediction = namespace["result"], namespace["prediction"]
    assert result.model_dir == Path("runs/first/model")
    assert result.history[-1]["validation:mIOU"] == result.scores.mIOU
    assert namespace["scores"].mIOU == pytest.approx(result.scores.mIOU, abs=0.02)
    assert {"metrics.json", "report.html"} <= {path.name for path in (data / "scores").iterdir()}
    with Image.open("mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), namespace["mask"])
    assert sum(entry["pixels"] for entry in prediction.counts()) == 64 * 48
    assert namespace["folder"] == result.model_dir / "exports" / "onnx-float32"
    assert namespace["fast"](prediction.image).shape == (48, 64)
    assert not namespace["network"].training


def test_functions_raise_library_errors(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="lr: unknown key; did you mean learning_rate"):
        pspnet.train(data="data", num_classes=7, lr=1)
    with pytest.raises(ConfigError, match="nowhere"):
        pspnet.train(data="nowhere", num_classes=7)
    with pytest.raises(WeightsError, match="not a model directory"):
        pspnet.load_model("data")
    with pytest.raises(WeightsError, match="not a model directory"):
        pspnet.evaluate("data", "data/validation", "data/validation_annotation")
    with pytest.raises(DataError, match="does not exist"):
        pspnet.evaluate("data", "nowhere", "data/validation_annotation")
    with pytest.raises(ConfigError, match="format: found 'tflite'; allowed: onnx, openvino, torchscript"):
        pspnet.export("data", "tflite")
    with pytest.raises(ConfigError, match="calibration: missing; int8 needs a data set"):
        pspnet.export("data", "onnx", int8=True)
    monkeypatch.setattr(loop, "train", lambda _: Outcome(143))
    with pytest.raises(
        TrainingStoppedError, match=r"signal \(exit code 143\).*checkpoints; the same job resumes"
    ) as stop:
        pspnet.train(data="data", num_classes=7)
    assert stop.value.exit_code == 143


USER_FILE = """
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import pspnet

config: pspnet.Config = pspnet.Config(data="data", num_classes=3)
rate: float = config.learning_rate
result: pspnet.TrainingResult = pspnet.train(data=Path("data"), num_classes=3, epochs=2)
directory: Path = result.model_dir
value: float = result.history[0]["validation:mIOU"]
scores: pspnet.Scores = pspnet.evaluate(directory, "images", Path("annotations"), protocol="slide", output="out")
mean: float = scores.mIOU + result.scores.pixel_accuracy
folder: Path = pspnet.export(directory, "onnx", output="exported", int8=True, calibration="data")
network: nn.Module = pspnet.load_model(directory)
untrained: pspnet.PSPNet = pspnet.build_model(3, width=8)
predictor: pspnet.Predictor = result.predictor()
mask: np.ndarray = pspnet.Predictor.load("model", "cpu", runtime="eager")("frame.jpg")
masks: list[np.ndarray] = predictor(["a.jpg", "b.jpg"])
one: pspnet.Prediction = predictor.predict(Image.new("RGB", (9, 9)), probabilities=True)
several: list[pspnet.Prediction] = predictor.predict([mask, mask], confidence=True)
for prediction in predictor.predict_iter(Path("images").iterdir()):
    picture: Image.Image = prediction.overlay()
    prediction.save(Path("mask.png"))
    confidence: np.ndarray = prediction.confidence()
    names: list[str] = [entry["name"] for entry in prediction.counts()]
ids: np.ndarray = predictor(torch.zeros(3, 9, 9, dtype=torch.uint8))
try:
    frames: list[int] = [record.frame for record in pspnet.read_masks("masks", frames=range(3))]
except pspnet.PspnetError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER_FILE)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--follow-imports=silent"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    cache = ["--cache-dir", str(tmp_path / "cache"), "user.py"]
    found = subprocess.run(
        [*command, *cache], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stdout + found.stderr
