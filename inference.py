"""The endpoint's four handlers, as SageMaker's PyTorch inference toolkit finds and calls them.

The toolkit counts parameters: one more than here, even with a default, would silently receive its context.
The toolkit (2.0.25) puts the traceback into the body for its own errors too. A plain sentence leaves only by a context:
output_fn(prediction, accept, context) sets context.set_response_status(code, phrase) and returns (sentence, "text/plain").
Without Accept, or with */*, it asks output_fn for application/json; context.get_all_request_header(0) has the true headers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

# The toolkit does not always put the folder of this file on the path, and the package lies beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pspnet.errors import PspnetError
from pspnet.serving.answers import choose_answer, encode
from pspnet.serving.codec import RequestError, decode_image
from pspnet.serving.predictor import Prediction, Predictor

_PHRASES = {400: "Bad Request", 406: "Not Acceptable", 413: "Payload Too Large", 415: "Unsupported Media Type"}


def model_fn(model_dir: str) -> Predictor:
    """The model of a model directory, on the GPU if there is one."""
    return Predictor.load(model_dir)


def input_fn(body: bytes | bytearray | str, content_type: str) -> np.ndarray:
    """A request's body -> (H, W, 3) uint8 RGB image."""
    try:
        return decode_image(body.encode() if isinstance(body, str) else bytes(body), content_type)
    except RequestError as error:
        raise _answer(error) from None


def predict_fn(data: np.ndarray, model: Predictor) -> Prediction:
    """(H, W, 3) uint8 RGB image -> mask of the same size."""
    try:
        return model.predict([data])[0]
    except PspnetError as error:
        raise _answer(RequestError(400, str(error))) from None


def output_fn(prediction: Prediction, accept: str) -> tuple[bytes, str]:
    """The answer's body and its content type."""
    try:
        form = choose_answer(accept)
        return encode(prediction, form), form.media_type
    except RequestError as error:
        raise _answer(error) from None


def _answer(error: RequestError) -> Exception:
    """The error that the toolkit turns into status and sentence; from any other one it makes a 500 with a traceback."""
    try:
        from sagemaker_inference.errors import BaseInferenceToolkitError
    except ImportError:  # outside the inference images
        return error
    answer: Exception = BaseInferenceToolkitError(error.status, str(error), _PHRASES[error.status])
    return answer
