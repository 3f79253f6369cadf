"""The endpoint's four handlers, as SageMaker's PyTorch inference toolkit finds and calls them.

The toolkit counts parameters. A handler with one more than it needs gets the request's context, which these ask for:

- The Accept header reaches input_fn and predict_fn only there, and class probabilities are computed only where it asks
  for them. A missing one is a mask in image/png, where the toolkit would put application/json.
- An exception becomes an answer with its traceback in the body, even the toolkit's own kind. So a request that cannot
  be answered travels through the handlers as a RequestError, and output_fn sets the status and answers its sentence.

Without a context (in a script, in a test) errors are raised, and output_fn goes by its `accept`.
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

# The toolkit does not always put the folder of this file on the path, and the package lies beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Prediction, Predictor
from pspnet.serving.loading import open_predictor
from pspnet.serving.protocol.accept import ATTRIBUTES_HEADER, AnswerForm, choose_answer
from pspnet.serving.protocol.answers import check_answer, encode
from pspnet.serving.protocol.request_error import RequestError, as_request_error
from pspnet.serving.protocol.request_image import decode_image
from pspnet.serving.serve_settings import ServeSettings

# What TorchServe carries unless TS_MAX_RESPONSE_SIZE says otherwise, and room for the frame around an answer.
_TORCHSERVE_RESPONSE_BYTES = 6_553_500
_FRAME_BYTES = 16_384

_Done = TypeVar("_Done")


@dataclass(frozen=True)
class Request:
    """An (H, W, 3) uint8 RGB image and the form that its answer shall have."""

    image: np.ndarray
    form: AnswerForm


@dataclass(frozen=True)
class Result:
    """What the model says, and the form to answer it in."""

    prediction: Prediction
    form: AnswerForm


def model_fn(model_dir: str) -> Predictor:
    """The model of a model directory; PSPNET_DEVICE, PSPNET_PRECISION and PSPNET_RUNTIME count as in `pspnet serve`."""
    _let_bodies_through()
    return open_predictor(Path(model_dir), ServeSettings.from_environment(os.environ, model_dir=model_dir), _limits())


def input_fn(body: Any, content_type: str | None, context: Any = None) -> Request | RequestError:
    """A request's body and headers -> image and form of the answer."""

    def read() -> Request:
        accept, attributes = _wishes(context)
        form = choose_answer(accept, attributes)
        # None without a body; str or a mapping where the server has decoded it, by a content type that is refused.
        data = bytes(body) if isinstance(body, (bytes, bytearray)) else str(body or "").encode()
        return Request(decode_image(data, content_type, _limits()), form)

    return _guarded(context, read)


def predict_fn(request: Request | RequestError, model: Predictor, context: Any = None) -> Result | RequestError:
    """Image -> prediction, with class probabilities where the answer needs them."""

    def predict() -> Result:
        if isinstance(request, RequestError):
            raise request
        height, width = request.image.shape[:2]
        check_answer(request.form, height, width, len(model.class_names), model.limits)
        prediction = model.predict([request.image], probabilities=request.form.needs_probabilities)[0]
        return Result(prediction, request.form)

    return _guarded(context, predict)


def output_fn(result: Result | RequestError, accept: str | None, context: Any = None) -> tuple[bytes, str]:
    """The answer's body and its content type."""

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
    """The step's result, or the RequestError to answer with; raised where there is no context."""
    try:
        return step()
    except Exception as error:
        answer = as_request_error(error)
        if context is None:
            raise answer from (None if answer is error else error)
        return answer


def _wishes(context: Any) -> tuple[str | None, str | None]:
    """The request's Accept header, or the container's default for none, and its custom attributes."""
    headers = {}
    if context is not None:
        properties = context.request_processor[0].get_request_properties()
        headers = {name.lower(): value for name, value in properties.items() if isinstance(value, str)}
    accept = headers.get("accept", "").strip()
    if accept in ("", "*/*"):
        accept = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "")
    return accept, headers.get(ATTRIBUTES_HEADER.lower())


def _limits() -> Limits:
    """The settings, with answers no larger than this server carries."""
    limits = Limits.from_environment(os.environ)
    carried = os.environ.get("TS_MAX_RESPONSE_SIZE", "")
    largest = int(carried) if carried.isdigit() else _TORCHSERVE_RESPONSE_BYTES
    return limits.replace(answer_bytes=min(limits.answer_bytes, max(1, largest - _FRAME_BYTES)))


def _let_bodies_through() -> None:
    """Keep the toolkit from decoding the bodies of text types before input_fn refuses them.

    Where such a body is no UTF-8, it would answer 500 and a traceback.
    """
    try:
        from sagemaker_inference import content_types
    except ImportError:  # outside the inference images
        return
    content_types.UTF8_TYPES = []
