"""One request on its way through the engine: decoded, predicted in a batch, encoded; each step timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from pspnet.errors import is_out_of_memory
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Prediction, Predictor
from pspnet.serving.protocol.answers import AnswerForm, check_answer, encode
from pspnet.serving.protocol.request_error import known_answer
from pspnet.serving.protocol.request_image import decode_image

BUSY = "The endpoint has more requests than it can answer; try again shortly."
STOPPING = "The endpoint is stopping; try again shortly."


class CancelledJobError(Exception):
    """The caller has gone: nobody waits for the answer."""


@dataclass(eq=False)
class Job:
    """A request. `on_done(job)` is called once, in a thread of the engine, when `answer` or `error` is set."""

    body: bytes
    content_type: str | None
    form: AnswerForm
    on_done: Callable[[Job], None]
    submitted: float = field(default_factory=time.perf_counter)
    image: np.ndarray | None = None
    answer: bytes | None = None
    error: Exception | None = None
    cancelled: bool = False
    decoding: Future[None] | None = None
    """Set where a helper thread decodes the image while the job waits."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by stage: queue (waiting, without what was decoded meanwhile), decode, predict (of its batch), encode."""

    def decode(self, limits: Limits) -> None:
        """Body -> image; what goes wrong is kept in `error`."""
        started = time.perf_counter()
        try:
            self.image = decode_image(self.body, self.content_type, limits)
        except Exception as error:
            self.error = known_answer(error) or error
        self.seconds["decode"] = time.perf_counter() - started

    def encode(self, prediction: Prediction, limits: Limits) -> None:
        """Prediction -> answer; what goes wrong is kept in `error`."""
        started = time.perf_counter()
        try:
            self.answer = encode(prediction, self.form, limits)
        except Exception as error:
            self.error = known_answer(error) or error
        self.seconds["encode"] = time.perf_counter() - started

    def check(self, classes: int, limits: Limits) -> None:
        """Before the model runs: would the answer fit?"""
        if self.image is None or self.error is not None:
            return
        try:
            check_answer(self.form, self.image.shape[0], self.image.shape[1], classes, limits)
        except Exception as error:
            self.error = known_answer(error) or error

    def finish(self) -> None:
        """Let go of the bytes that nobody needs any more, and tell the caller."""
        self.body, self.image = b"", None
        self.on_done(self)


def predict_jobs(predictor: Predictor, jobs: list[Job]) -> list[Prediction | None]:
    """Run a batch of decoded jobs; None for those whose `error` it sets.

    Where a batch fails, for lack of memory or by one bad image, its jobs run one by one, so that none suffers for
    another.
    """
    images = [job.image for job in jobs if job.image is not None]
    started = time.perf_counter()
    try:
        found: list[Prediction | None] = list(predictor.predict(images, jobs[0].form.needs_probabilities))
    except Exception as error:
        # The exception holds the stack and with it the tensors: give them back before anything else runs.
        error.__traceback__ = None if is_out_of_memory(error) else error.__traceback__
        if is_out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(jobs) > 1:
            return [predict_jobs(predictor, [job])[0] for job in jobs]
        jobs[0].error = known_answer(error) or error
        found = [None]
    seconds = time.perf_counter() - started
    for job in jobs:
        job.seconds["predict"] = seconds
    return found
