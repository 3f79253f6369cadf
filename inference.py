"""The four handlers that SageMaker's PyTorch inference toolkit calls.

The toolkit counts parameters: a handler with one extra parameter receives the request's context. These need it:

- The Accept header reaches input_fn and predict_fn only through the context, and class probabilities are computed only
  if it requests them. A missing header means a mask in image/png; the toolkit would substitute application/json.
- The toolkit answers any exception, even its own kind, with a traceback in the body. So a request that cannot be
  answered passes through the handlers as a RequestError, and output_fn sets the status and returns its sentence.

Without a context (in a script, in a test) errors are raised, and output_fn uses its `accept`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

# The toolkit does not always put the folder of this file on the path, and the package is next to it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pspnet.inference.limits import Limits
from pspnet.inference.prediction import Prediction
from pspnet.inference.predictor import Predictor
from pspnet.serving.loading import open_predictor
from pspnet.serving.protocol.accept import ATTRIBUTES_HEADER, AnswerForm, choose_answer
from pspnet.serving.protocol.answers import check_answer, encode
from pspnet.serving.protocol.request_error import RequestError, as_request_error
from pspnet.serving.protocol.request_image import decode_image
from pspnet.serving.serve_settings import ServeSettings

# TorchServe's default of TS_MAX_RESPONSE_SIZE, and room for the frame around an answer.
_TORCHSERVE_RESPONSE_BYTES = 6_553_500
_FRAME_BYTES = 16_384

_Done = TypeVar("_Done")


@dataclass(frozen=True)
class Request:
    """An (H, W, 3) uint8 RGB image and the requested form of its answer."""

    image: np.ndarray
    form: AnswerForm


@dataclass(frozen=True)
class Result:
    """A prediction and the requested form of the answer."""

    prediction: Prediction
    form: AnswerForm


def model_fn(model_dir: str) -> Predictor:
    """Load a model directory with PSPNET_DEVICE, PSPNET_PRECISION and PSPNET_RUNTIME as in `pspnet serve`."""
    _disable_text_decoding()
    return open_predictor(Path(model_dir), ServeSettings.from_environment(os.environ, model_dir=model_dir), _limits())


def input_fn(body: Any, content_type: str | None, context: Any = None) -> Request | RequestError:
    """Decode a request's body and headers to the image and the form of the answer."""

    def read() -> Request:
        accept, attributes = _requested_form(context)
        form = choose_answer(accept, attributes)
        # None without a body; str or a mapping if the server decoded it, for a content type that is refused.
        data = bytes(body) if isinstance(body, (bytes, bytearray)) else str(body or "").encode()
        return Request(decode_image(data, content_type, _limits()), form)

    return _guarded(context, read)


def predict_fn(request: Request | RequestError, model: Predictor, context: Any = None) -> Result | RequestError:
    """Predict the image, with class probabilities if the answer needs them."""

    def predict() -> Result:
        if isinstance(request, RequestError):
            raise request
        height, width = request.image.shape[:2]
        check_answer(request.form, height, width, len(model.class_names), model.limits)
        prediction = model.predict([request.image], probabilities=request.form.needs_probabilities)[0]
        return Result(prediction, request.form)

    return _guarded(context, predict)


def output_fn(result: Result | RequestError, accept: str | None, context: Any = None) -> tuple[bytes, str]:
    """Return the answer's body and its content type."""

    def write() -> tuple[bytes, str]:
        if isinstance(result, RequestError):
            raise result
        form = choose_answer(accept) if context is None else result.form
        return encode(result.prediction, form, _limits()), form.media_type

    answer = _guarded(context, write)
    if isinstance(answer, RequestError):
        context.set_response_status(code=answer.status, phrase=HTTPStatus(answer.status).phrase)
        return str(answer).encode(), "text/plain; charset=utf-8"
    return answer


def _guarded(context: Any, step: Callable[[], _Done]) -> _Done | RequestError:
    """Return the step's result or the RequestError to answer with, which is raised if there is no context."""
    try:
        return step()
    except Exception as error:
        answer = as_request_error(error)
        if context is None:
            raise answer from (None if answer is error else error)
        return answer


def _requested_form(context: Any) -> tuple[str | None, str | None]:
    """Return the request's Accept header, by default the container's, and its custom attributes."""
    headers = {}
    if context is not None:
        properties = context.request_processor[0].get_request_properties()
        headers = {name.lower(): value for name, value in properties.items() if isinstance(value, str)}
    accept = headers.get("accept", "").strip()
    if accept in ("", "*/*"):
        accept = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "")
    return accept, headers.get(ATTRIBUTES_HEADER.lower())


def _limits() -> Limits:
    """Read the limits, with answers no larger than TorchServe's limit."""
    limits = Limits.from_environment(os.environ)
    maximum = os.environ.get("TS_MAX_RESPONSE_SIZE", "")
    largest = int(maximum) if maximum.isdigit() else _TORCHSERVE_RESPONSE_BYTES
    return limits.replace(answer_bytes=min(limits.answer_bytes, max(1, largest - _FRAME_BYTES)))


def _disable_text_decoding() -> None:
    """Keep the toolkit from decoding the bodies of text types before input_fn refuses them.

    It would answer a body that is not UTF-8 with status 500 and a traceback.
    """
    try:
        from sagemaker_inference import content_types
    except ImportError:  # outside the inference images
        return
    content_types.UTF8_TYPES = []
