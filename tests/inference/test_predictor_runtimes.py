"""Predictor with every kind of runtime: choice, preparation, and the handling of image sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.artifact.model_directory import architecture_of, read_labels, save_artifact
from pspnet.classes import voc_palette
from pspnet.cli.dispatch import dispatch
from pspnet.config.schema import Config
from pspnet.errors import ConfigError, WeightsError
from pspnet.inference import predictor as predictor_module
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Predictor
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded
from tests.inference.runtimes.tiny_exports import write_openvino
from tests.serving.pictures import picture


class RecordingRuntime:
    """The brightest channel is the class; records its calls."""

    name = "recording"

    def __init__(self) -> None:
        self.prepared: list[tuple[int, int, int]] = []
        self.seen: list[tuple[int, ...]] = []

    def masks(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images.shape)
        return images.argmax(axis=3).astype(np.uint8)

    def logits(self, images: np.ndarray) -> torch.Tensor:
        self.seen.append(images.shape)
        return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        self.prepared.append((height, width, batch))


def recording(**limits: Any) -> tuple[Predictor, RecordingRuntime]:
    runtime = RecordingRuntime()
    return Predictor(runtime, tuple("abc"), voc_palette(), limits=Limits(**limits)), runtime


@pytest.fixture
def model_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PSPNET_CACHE", str(tmp_path / "cache"))
    config = Config(num_classes=3, data="x", width=4, use_pretrained_model=False)
    save_artifact(tmp_path / "model", build_model(**architecture_of(config)), config, {}, {})
    return tmp_path / "model"


def test_prepare_uses_the_sizes_of_the_forward_passes() -> None:
    predictor, runtime = recording(pass_pixels=64 * 64)
    predictor.prepare([(48, 64), (20, 64), (200, 300), (48, 64)])
    predictor(picture(200, 300))
    assert runtime.prepared[:2] == [(48, 64, 1), (32, 64, 1)]
    assert {(1, *entry[:2], 3) for entry in runtime.prepared[2:]} == set(runtime.seen)
    scaled, runtime = recording(pass_pixels=64 * 64, large_images="scale")
    scaled.prepare([(200, 300)])
    scaled(picture(200, 300))
    assert [(1, *entry[:2], 3) for entry in runtime.prepared] == runtime.seen


def test_prepare_uses_batches_that_fit_one_forward_pass() -> None:
    predictor, runtime = recording(pass_pixels=10_000)
    predictor.prepare([(48, 64), (100, 100)], batch=8)
    assert runtime.prepared == [(48, 64, 1), (48, 64, 3), (100, 100, 1)]


def test_tiling_padding_and_probabilities_work_with_any_runtime() -> None:
    predictor, runtime = recording(pass_pixels=64 * 64)
    for image in (picture(150, 100), picture(5, 200), picture(40, 40)):
        expected = image.argmax(axis=2)
        np.testing.assert_array_equal(predictor(image), expected)
        found = predictor.predict([image], probabilities=True)[0]
        np.testing.assert_array_equal(found.mask, expected)
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    batch = [picture(40, 40), picture(40, 40)[::-1]]
    for image, prediction in zip(batch, predictor.predict(batch)):
        np.testing.assert_array_equal(prediction.mask, image.argmax(axis=2))
    assert runtime.seen[-1] == (2, 40, 40, 3)
    with pytest.raises(AttributeError, match="the runtime recording holds no PyTorch module"):
        predictor.model  # noqa: B018


def test_an_export_runs_without_the_network(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    write_openvino(model_dir)
    monkeypatch.setattr(predictor_module, "load_trained", None)
    predictor = Predictor.load(model_dir, "cpu", runtime="openvino")
    assert predictor.runtime.name == "openvino"
    assert predictor.class_names == read_labels(model_dir)[0]
    np.testing.assert_array_equal(predictor(picture()), picture().argmax(axis=2))


def test_errors_of_load(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runtime: found 'fast'; use auto, eager"):
        Predictor.load(model_dir, runtime="fast")
    with pytest.raises(WeightsError, match="not a model directory"):
        Predictor.load(tmp_path, runtime="openvino")
    with pytest.raises(ConfigError, match="needs an export in a model directory"):
        Predictor(build_model(3, width=4), tuple("abc"), voc_palette(), runtime="openvino")


def test_auto_without_exports_is_eager_and_prepares_like_it(model_dir: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(model_dir, "cpu")
    assert type(predictor.runtime) is EagerRuntime
    before = predictor(picture())
    predictor.prepare([(48, 64)])
    np.testing.assert_array_equal(predictor(picture()), before)
    np.testing.assert_array_equal(Predictor.load(model_dir, "cpu", runtime="eager")(picture()), before)
    assert not (tmp_path / "cache").exists()


def test_predict_uses_a_runtime_or_reports_what_is_missing(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    command = ["predict", str(model_dir), str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert run_guarded(dispatch, [*command, "--runtime", "openvino"]) == 1
    error = capsys.readouterr().err
    assert f"Create it with `pspnet export {model_dir} --format openvino`" in error
    assert "Traceback" not in error
    assert run_guarded(dispatch, [*command, "--runtime", "tensorrt"]) == 2
    assert "runtime tensorrt needs an NVIDIA GPU" in capsys.readouterr().err
    write_openvino(model_dir)
    assert run_guarded(dispatch, [*command, "--runtime", "openvino"]) == 0
    with Image.open(tmp_path / "out" / "a.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), picture().argmax(axis=2))
