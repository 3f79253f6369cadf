"""The endpoint's handlers, with and without a request's context."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.config.schema import Config
from pspnet.errors import ConfigError
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.serving.protocol.request_error import RequestError
from tests.serving.pictures import encoded, noise

PIXELS = noise(40, 56, 1)
BODY = encoded(PIXELS)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(num_classes=3, class_names="sky, road, car", data="x", width=4, use_pretrained_model=False)
    folder: Path = tmp_path_factory.mktemp("model")
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    return folder


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Predictor:
    return inference.model_fn(str(model_dir))


class Context:
    """The part of TorchServe's context that the handlers use."""

    def __init__(self, **headers: str) -> None:
        self.headers: dict[str, Any] = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers["body"] = {"content-type": "image/png"}  # the server adds the headers of multipart bodies
        self.request_processor = [self]
        self.status = (200, "")

    def get_request_properties(self) -> dict[str, Any]:
        return self.headers

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status = (code, phrase)


def answer(model: Any, body: Any, content_type: str | None, context: Context, accept: str = "application/json") -> Any:
    """Call the handlers as the toolkit does, which substitutes application/json for a missing Accept header."""
    data = inference.input_fn(body, content_type, context)
    return inference.output_fn(inference.predict_fn(data, model, context), accept, context)


def test_the_handlers_have_the_number_of_parameters_that_the_toolkit_expects() -> None:
    counts = {name: len(inspect.signature(getattr(inference, name)).parameters) for name in (
        "model_fn", "input_fn", "predict_fn", "output_fn",
    )}  # fmt: skip
    assert counts == {"model_fn": 1, "input_fn": 3, "predict_fn": 3, "output_fn": 3}
    assert not hasattr(inference, "transform_fn")


# --- with a context ---------------------------------------------------------------------------------------------------


def test_a_frame_becomes_the_mask_of_the_predictor(model: Predictor) -> None:
    context = Context()
    body, content_type = answer(model, bytearray(BODY), "image/png", context)
    assert (content_type, context.status) == ("image/png", (200, ""))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), model(PIXELS))


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ({"Accept": "*/*"}, "image/png"),
        ({"accept": "image/jpeg"}, "image/jpeg"),
        ({"ACCEPT": "text/html, application/json;q=0.2"}, "application/json"),
        ({"Accept": "application/x-recordio-protobuf"}, "application/x-recordio-protobuf"),
        ({"X-Amzn-SageMaker-Custom-Attributes": "answer=overlay"}, "image/jpeg"),
        ({"x_amzn_sagemaker_custom_attributes": "id=7;answer=summary", "Accept": "*/*"}, "application/json"),
    ],
)
def test_the_answer_follows_the_requests_own_headers(
    model: Predictor, headers: dict[str, str], content_type: str
) -> None:
    context = Context(**headers)
    assert answer(model, BODY, "image/png", context, accept="image/png")[1] == content_type
    assert context.status[0] == 200


def test_the_containers_default_accept_is_used_if_set(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "application/x-npy")
    assert answer(model, BODY, None, Context())[1] == "application/x-npy"
    assert answer(model, BODY, None, Context(Accept="*/*"))[1] == "application/x-npy"
    assert answer(model, BODY, None, Context(Accept="image/png"))[1] == "image/png"


def test_probabilities_are_computed_only_on_request(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    predict = model.predict

    def spy(images: list[np.ndarray], probabilities: bool = False) -> Any:
        asked.append(probabilities)
        return predict(images, probabilities)

    monkeypatch.setattr(model, "predict", spy)
    for accept in ("image/png", "application/json", "application/x-protobuf"):
        answer(model, BODY, "image/png", Context(Accept=accept))
    assert asked == [False, False, True]


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "phrase", "text"),
    [
        (b"", "image/png", "", 400, "Bad Request", "The request has no body"),
        (None, "image/png", "", 400, "Bad Request", "The request has no body"),
        (BODY[:200], "image/png", "", 400, "Bad Request", "not a readable JPEG, PNG or WebP"),
        (b"a,b", "text/csv", "", 415, "Unsupported Media Type", "The content type is 'text/csv'"),
        ("a,b", "text/csv", "", 415, "Unsupported Media Type", "The content type is 'text/csv'"),
        ({"a": 1}, "application/json", "", 415, "Unsupported Media Type", "The content type is 'application/json'"),
        (BODY, "image/png", "text/html", 406, "Not Acceptable", "Unsupported answer 'text/html'"),
        (BODY, "image/png", "*/*;q=0", 406, "Not Acceptable", "Unsupported answer"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_a_status_and_a_sentence(
    model: Predictor, body: Any, content_type: str, accept: str, status: int, phrase: str, text: str
) -> None:
    context = Context(Accept=accept)
    found, found_type = answer(model, body, content_type, context)
    assert context.status == (status, phrase)
    assert found_type == "text/plain; charset=utf-8"
    assert found.decode().startswith(text) or text in found.decode()
    assert "\n" not in found.decode()


def test_answers_that_are_too_large_are_refused_before_the_model_runs(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPNET_ANSWER_BYTES", "20000")
    limited = Predictor(model.model, model.class_names, model.palette, limits=inference._limits())
    monkeypatch.setattr(limited, "predict", lambda *_: pytest.fail("the model ran"))
    context = Context(Accept="application/x-protobuf")
    found, _ = answer(limited, BODY, "image/png", context)
    assert context.status[0] == 413
    assert found.startswith(b"Probabilities of 3 classes for 56x40 pixels take 27,008 bytes")


def test_an_unexpected_exception_is_a_500_whose_traceback_is_only_logged(
    model: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(model, "predict", fail)
    context = Context()
    with caplog.at_level(logging.ERROR):
        found, _ = answer(model, BODY, "image/png", context)
    assert context.status == (500, "Internal Server Error")
    assert found == b"The endpoint failed to answer this request; see its log for the reason."
    assert "secret" in caplog.text
    assert "Traceback" in caplog.text


def test_out_of_memory_is_a_503(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(model, "predict", fail)
    context = Context()
    found, _ = answer(model, BODY, "image/png", context)
    assert context.status == (503, "Service Unavailable")
    assert found.startswith(b"The endpoint ran out of memory")


# --- without a context ------------------------------------------------------------------------------------------------


def test_a_script_calls_the_handlers_one_after_another(model: Predictor) -> None:
    result = inference.predict_fn(inference.input_fn(BODY, "image/png"), model)
    body, content_type = inference.output_fn(result, "application/json")
    assert content_type == "application/json"
    found = json.loads(body)
    assert sum(entry["pixels"] for entry in found["classes"]) == 40 * 56
    assert {entry["name"] for entry in found["classes"]} <= {"sky", "road", "car"}


def test_errors_without_a_context_are_raised(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="not a readable JPEG, PNG or WebP") as caught:
        inference.input_fn(b"text", "image/png")
    assert caught.value.status == 400
    result = inference.predict_fn(inference.input_fn(BODY, "image/png"), model)
    with pytest.raises(RequestError, match="Unsupported answer 'text/html'"):
        inference.output_fn(result, "text/html")
    monkeypatch.setattr(model, "predict", lambda *_, **__: 1 / 0)
    with pytest.raises(RequestError, match="see its log for the reason") as caught:
        inference.predict_fn(inference.input_fn(BODY, "image/png"), model)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# --- settings and the toolkit itself ----------------------------------------------------------------------------------


def test_answers_are_no_larger_than_the_limit_of_torchserve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inference._limits().answer_bytes == 6_553_500 - 16_384
    monkeypatch.setenv("TS_MAX_RESPONSE_SIZE", "50000000")
    assert inference._limits().answer_bytes == 25_000_000
    monkeypatch.setenv("PSPNET_ANSWER_BYTES", "4000000")
    assert inference._limits().answer_bytes == 4_000_000
    monkeypatch.setenv("TS_MAX_RESPONSE_SIZE", "1000000")
    assert inference._limits().answer_bytes == 1_000_000 - 16_384


def test_wrong_settings_stop_the_model_from_loading(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_LARGE_IMAGES", "crop")
    with pytest.raises(
        ConfigError, match=r"large_images: found 'crop' .environment PSPNET_LARGE_IMAGES.; allowed: tile, scale or"
    ):
        inference.model_fn(str(model_dir))


def test_the_variables_of_serving_are_used(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_DEVICE", "cpu")
    monkeypatch.setenv("PSPNET_PRECISION", "bfloat16")
    runtime: Any = inference.model_fn(str(model_dir)).runtime
    assert (runtime.name, runtime.dtype) == ("eager", torch.bfloat16)
    monkeypatch.setenv("PSPNET_RUNTIME", "openvino")
    with pytest.raises(ConfigError, match="runtime openvino runs an export unchanged; bfloat16 needs the runtime"):
        inference.model_fn(str(model_dir))
    monkeypatch.setenv("PSPNET_RUNTIME", "fast")
    with pytest.raises(ConfigError, match=r"runtime: found 'fast' .environment PSPNET_RUNTIME.; allowed: auto, eager"):
        inference.model_fn(str(model_dir))


def test_the_toolkit_does_not_decode_bodies(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, types = ModuleType("sagemaker_inference"), ModuleType("sagemaker_inference.content_types")
    types.UTF8_TYPES = ["application/json", "text/csv"]  # type: ignore[attr-defined]
    package.content_types = types  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sagemaker_inference", package)
    monkeypatch.setitem(sys.modules, "sagemaker_inference.content_types", types)
    inference.model_fn(str(model_dir))
    assert types.UTF8_TYPES == []


def test_the_real_toolkit_calls_these_handlers(
    model_dir: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer_module = pytest.importorskip("sagemaker_inference.transformer")
    monkeypatch.setattr(importlib.import_module("sagemaker_inference.environment"), "model_dir", str(model_dir))
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "inference.py")

    class Served(Context):
        def __init__(self, **headers: str) -> None:
            super().__init__(**headers)
            self.system_properties = {"model_dir": str(model_dir)}
            self.content_type = ""

        def set_response_content_type(self, idx: int, value: str) -> None:
            self.content_type = value

    transformer = transformer_module.Transformer()
    context = Served()
    (body,) = transformer.transform([{"body": bytearray(BODY)}], context)
    assert (context.content_type, context.status[0]) == ("image/png", 200)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), model(PIXELS))
    for content_type, status in (("text/csv", 415), ("application/json", 415), ("image/png", 400)):
        context.headers["Content-Type"] = content_type
        (body,) = transformer.transform([{"body": bytearray(b"\xff\xfe")}], context)
        assert context.status[0] == status
        assert context.content_type == "text/plain; charset=utf-8"
        assert b"Traceback" not in body
        assert b"\n" not in body
