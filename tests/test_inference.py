"""The endpoint's handlers: what the toolkit counts and calls, and the errors that it understands."""

from __future__ import annotations

import inspect
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import inference
from pspnet.config import Config
from pspnet.models.pspnet import build_model
from pspnet.serving.artifact import architecture_of, save_artifact
from pspnet.serving.codec import RequestError
from pspnet.serving.predictor import Predictor

PIXELS = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    config = Config(num_classes=3, class_names="sky, road, car", data="x", width=4, use_pretrained_model=False)
    folder: Path = tmp_path_factory.mktemp("model")
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    return inference.model_fn(str(folder))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_handlers_have_the_parameters_that_the_toolkit_counts() -> None:
    counts = {name: len(inspect.signature(getattr(inference, name)).parameters) for name in (
        "model_fn", "input_fn", "predict_fn", "output_fn",
    )}  # fmt: skip
    assert counts == {"model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2}


def test_a_frame_becomes_the_mask_that_the_predictor_gives(model: Predictor) -> None:
    image = inference.input_fn(bytearray(png(PIXELS)), "image/png")
    body, content_type = inference.output_fn(inference.predict_fn(image, model), "image/png")
    assert content_type == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), model(PIXELS))


def test_a_frame_becomes_counts_in_json(model: Predictor) -> None:
    body, content_type = inference.output_fn(inference.predict_fn(PIXELS, model), "application/json")
    answer = json.loads(body)
    assert content_type == "application/json"
    assert sum(entry["pixels"] for entry in answer["classes"]) == 40 * 56
    assert {entry["name"] for entry in answer["classes"]} <= {"sky", "road", "car"}


def test_errors_without_the_toolkit_are_plain_sentences(model: Predictor) -> None:
    with pytest.raises(RequestError, match="no readable JPEG or PNG"):
        inference.input_fn("text", "image/png")
    with pytest.raises(RequestError, match="32") as caught:
        inference.predict_fn(PIXELS[:8, :8], model)
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="cannot be 'text/html'"):
        inference.output_fn(inference.predict_fn(PIXELS, model), "text/html")


def test_errors_in_the_toolkit_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class BaseInferenceToolkitError(Exception):
        def __init__(self, status_code: int, message: str, phrase: str) -> None:
            self.status_code, self.message, self.phrase = status_code, message, phrase

    package, errors = ModuleType("sagemaker_inference"), ModuleType("sagemaker_inference.errors")
    errors.BaseInferenceToolkitError = BaseInferenceToolkitError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sagemaker_inference", package)
    monkeypatch.setitem(sys.modules, "sagemaker_inference.errors", errors)
    with pytest.raises(BaseInferenceToolkitError) as caught:
        inference.input_fn(b"x", "text/csv")
    found = caught.value
    assert (found.status_code, found.phrase) == (415, "Unsupported Media Type")
    assert found.message == "The content type is 'text/csv'; send image/jpeg or image/png."
