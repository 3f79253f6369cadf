"""One request in the engine: decoding, batched prediction and encoding, each stage timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from pspnet.errors import is_out_of_memory
from pspnet.inference.limits import Limits
from pspnet.inference.prediction import Prediction
from pspnet.inference.predictor import Predictor
from pspnet.serving.protocol.accept import AnswerForm
from pspnet.serving.protocol.answers import check_answer, encode
from pspnet.serving.protocol.request_error import known_answer
from pspnet.serving.protocol.request_image import decode_image

BUSY = "The endpoint has more requests than it can answer; try again shortly."
STOPPING = "The endpoint is stopping; try again shortly."


class RequestCancelledError(Exception):
    """The client has disconnected; no answer is needed."""


@dataclass(eq=False)
class QueuedRequest:
    """A request. `on_done(request)` is called once, in a thread of the engine, after `answer` or `error` is set."""

    body: bytes
    content_type: str | None
    form: AnswerForm
    on_done: Callable[[QueuedRequest], None]
    submitted: float = field(default_factory=time.perf_counter)
    image: np.ndarray | None = None
    answer: bytes | None = None
    error: Exception | None = None
    cancelled: bool = False
    decoding: Future[None] | None = None
    """Set if a helper thread decodes the image while the request waits."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by stage: queue (waiting, excluding decoding meanwhile), decode, predict (of its batch), encode."""

    def decode(self, limits: Limits) -> None:
        """Decode the body into `image`; store an exception in `error`."""
        started = time.perf_counter()
        try:
            self.image = decode_image(self.body, self.content_type, limits)
        except Exception as error:
            self.error = known_answer(error) or error
        self.seconds["decode"] = time.perf_counter() - started

    def encode(self, prediction: Prediction, limits: Limits) -> None:
        """Encode the prediction into `answer`; store an exception in `error`."""
        started = time.perf_counter()
        try:
            self.answer = encode(prediction, self.form, limits)
        except Exception as error:
            self.error = known_answer(error) or error
        self.seconds["encode"] = time.perf_counter() - started

    def check_answer_size(self, classes: int, limits: Limits) -> None:
        """Check before prediction that the answer fits; store a RequestError in `error` if it does not."""
        if self.image is None or self.error is not None:
            return
        try:
            check_answer(self.form, self.image.shape[0], self.image.shape[1], classes, limits)
        except Exception as error:
            self.error = known_answer(error) or error

    def finish(self) -> None:
        """Release the body and the image, and notify the caller."""
        self.body, self.image = b"", None
        self.on_done(self)


def predict_batch(predictor: Predictor, requests: list[QueuedRequest]) -> list[Prediction | None]:
    """Predict a batch of decoded requests; None for those whose `error` it sets.

    If a batch fails, out of memory or on one bad image, its requests run one by one, so that the others succeed.
    """
    images = [request.image for request in requests if request.image is not None]
    started = time.perf_counter()
    try:
        found: list[Prediction | None] = list(predictor.predict(images, requests[0].form.needs_probabilities))
    except Exception as error:
        # The traceback keeps the tensors of the stack alive: release them before anything else runs.
        error.__traceback__ = None if is_out_of_memory(error) else error.__traceback__
        if is_out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(requests) > 1:
            return [predict_batch(predictor, [request])[0] for request in requests]
        requests[0].error = known_answer(error) or error
        found = [None]
    seconds = time.perf_counter() - started
    for request in requests:
        request.seconds["predict"] = seconds
    return found
