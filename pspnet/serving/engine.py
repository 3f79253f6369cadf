"""Model thread and request queue.

A single thread runs the model: OpenMP keeps a thread pool for every thread that calls it, and a second pool would
compete for the cores. With an empty queue, that thread decodes, predicts and encodes an image itself, which costs one
context switch in and one out. Only while requests are queued do helper threads decode the next images and encode the
last answers in parallel with the model.
"""

from __future__ import annotations

import gc
import io
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from pspnet.inference.limits import Limits
from pspnet.inference.prediction import Prediction
from pspnet.inference.predictor import Predictor
from pspnet.serving.protocol.accept import choose_answer
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.queued_request import BUSY, STOPPING, QueuedRequest, RequestCancelledError, predict_batch
from pspnet.serving.serve_settings import AUTO, GPU_BATCH
from pspnet.serving.server_metrics import READY, Row
from pspnet.serving.server_metrics import STOPPING as ROW_STOPPING


class Engine:
    """Answers queued requests, one batch after another. All public methods are thread-safe.

    Args:
        load: returns the predictor; runs in the model thread.
        queue: capacity of the request queue.
        max_batch: largest batch of images of the same size; `auto`: 1 on CPUs, GPU_BATCH on GPUs.
        warmup_size: (width, height) of the warm-up images.
        stuck_seconds: timeout of a forward pass, after which the model counts as stuck.
        on_started: called in the model thread with None after the warm-up, or with the exception that prevented it.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        limits: Limits,
        row: Row,
        queue: int = 32,
        max_batch: int | str = AUTO,
        warmup_size: tuple[int, int] = (480, 360),
        stuck_seconds: float = 300.0,
        on_started: Callable[[Exception | None], None] = lambda _: None,
    ) -> None:
        self._load, self._limits, self._row, self._on_started = load, limits, row, on_started
        self._capacity, self._max_batch, self._warmup_size, self._stuck = queue, max_batch, warmup_size, stuck_seconds
        self._changed = threading.Condition()
        self._queue: deque[QueuedRequest] = deque()
        self._active: list[QueuedRequest] = []
        self._batch_limit = 1
        self._stopped = False
        self._ready = False
        self._busy_since: float | None = None
        self._image_seconds = 0.1  # moving average; for Retry-After only
        self._helpers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Load the model and warm it up, in the model thread."""
        self._thread.start()

    def problem(self) -> str | None:
        """None if the model is ready, else one sentence with the reason."""
        if not self._ready and self._thread.is_alive():
            return "The model is being loaded."
        if not self._thread.is_alive():
            return "The model thread has ended."
        if self._is_stuck():
            return f"The model has not answered for {self._stuck:g} seconds."
        return "The endpoint is stopping." if self._stopped else None

    @property
    def lost(self) -> bool:
        """True if the model was ready and will not answer again: its thread has ended or is stuck."""
        return self._ready and not self._stopped and (not self._thread.is_alive() or self._is_stuck())

    def _is_stuck(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > self._stuck

    @property
    def full(self) -> bool:
        """True if the queue has no room for another request."""
        return len(self._queue) >= self._capacity

    def retry_after(self) -> int:
        """Estimated seconds until half of the queue is answered, 1..60."""
        return max(1, min(60, math.ceil(len(self._queue) * self._image_seconds / 2)))

    def submit(self, request: QueuedRequest) -> None:
        """Queue a request. Raises RequestError 503 if the queue is full or the model is not ready."""
        with self._changed:
            if self._stopped:
                raise RequestError(503, STOPPING)
            if not self._ready or not self._thread.is_alive():
                raise RequestError(503, self.problem() or STOPPING)
            if len(self._queue) >= self._capacity:
                raise RequestError(503, BUSY)
            self._queue.append(request)
            if self._active:
                self._prefetch()
            self._publish_depth()
            self._changed.notify()

    def cancel(self, request: QueuedRequest) -> None:
        """Drop a request whose client has disconnected. An active one ends after the current forward pass."""
        with self._changed:
            request.cancelled = True
            if request in self._queue:
                self._queue.remove(request)
                self._publish_depth()

    def close(self) -> None:
        """Stop accepting requests; queued ones are still answered."""
        with self._changed:
            self._stopped = True
            self._row.state = ROW_STOPPING
            self._changed.notify()

    def abort(self) -> None:
        """Stop accepting requests, and answer queued ones with 503."""
        self.close()
        with self._changed:
            waiting = list(self._queue)
            self._queue.clear()
        for request in waiting:
            request.error = RequestError(503, STOPPING)
            request.finish()

    def join(self, seconds: float) -> bool:
        """Wait for the model thread; return True if it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            predictor = self._load()
            self._warm_up(predictor)
            predictor.before_pass = self._before_pass
        except Exception as error:
            self._on_started(error)
            return
        gc.freeze()  # loaded objects stay alive; excluding them keeps garbage collections short while a frame waits
        with self._changed:
            self._ready = True
            if not self._stopped:
                self._row.state = READY
        self._on_started(None)
        try:
            while self._next_batch():
                self._answer(predictor)
        finally:
            self._end(died=not self._stopped)

    def _end(self, died: bool) -> None:
        """Answer all pending requests, since the thread ends: at a stop or after an unexpected exception."""
        for request in self._active:
            if request.answer is None and request.error is None:
                request.error = RequestError(503, STOPPING)
                request.finish()
        self.abort()
        self._stopped = not died  # `lost` depends on it
        self._helpers.shutdown(wait=True)

    def _warm_up(self, predictor: Predictor) -> None:
        """Answer two images like requests: the first forward pass is slow, and it verifies that the model works."""
        self._batch_limit = self._max_batch if isinstance(self._max_batch, int) else 1
        if self._max_batch == AUTO and predictor.device.type == "cuda":
            self._batch_limit = GPU_BATCH
        width, height = self._warmup_size
        predictor.prepare([(height, width)], self._batch_limit)
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for kind in ("PNG", "JPEG"):
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, format=kind)
            request = QueuedRequest(buffer.getvalue(), f"image/{kind.lower()}", choose_answer(None), lambda _: None)
            request.decode(self._limits)
            for prediction in predict_batch(predictor, [request]) if request.error is None else []:
                if prediction is not None:
                    request.encode(prediction, self._limits)
            if request.error is not None:
                raise request.error
        if self._batch_limit > 1:
            predictor.predict([noise] * self._batch_limit)

    def _next_batch(self) -> bool:
        """Wait for a request and activate it together with those of its batch; False at a stop."""
        with self._changed:
            self._active, self._busy_since = [], None
            self._publish_depth()
            while not self._queue:
                if self._stopped:
                    return False
                self._changed.wait()
            head = self._queue.popleft()
            self._active = [head]
            self._busy_since = time.monotonic()
            if self._queue:
                self._prefetch()
            self._publish_depth()
        self._decode(head)
        if head.image is not None and self._batch_limit > 1:
            with self._changed:
                others = [request for request in self._queue if _can_batch(request, head)][: self._batch_limit - 1]
                for request in others:
                    self._queue.remove(request)
                self._active += others
                if self._queue:
                    self._prefetch()
                self._publish_depth()
        return True

    def _before_pass(self) -> None:
        """Before each forward pass: reset the timeout, and abandon a large image whose clients have disconnected."""
        self._busy_since = time.monotonic()
        if all(request.cancelled for request in self._active):
            raise RequestCancelledError

    def _prefetch(self) -> None:
        """Decode the images of the next batch in helper threads; no more of them, which bounds the memory."""
        for index, request in enumerate(self._queue):
            if index >= self._batch_limit:
                return
            if request.decoding is None:
                request.decoding = self._helpers.submit(request.decode, self._limits)

    def _decode(self, request: QueuedRequest) -> None:
        if request.decoding is None or request.decoding.cancel():
            request.decode(self._limits)
        else:
            request.decoding.result()

    def _answer(self, predictor: Predictor) -> None:
        """Predict the active requests and answer them."""
        for request in self._active:
            if request.cancelled:
                request.error = RequestCancelledError()
            request.check_answer_size(len(predictor.class_names), self._limits)
            waited = time.perf_counter() - request.submitted - request.seconds.get("decode", 0.0)
            request.seconds["queue"] = max(0.0, waited)
        good = [request for request in self._active if request.error is None]
        predictions = predict_batch(predictor, good) if good else []
        if good:
            self._row.count_batch(len(good))
            self._image_seconds += 0.2 * (good[0].seconds["predict"] / len(good) - self._image_seconds)
        for request in self._active:
            if request.error is not None:
                request.finish()
        for request, prediction in zip(good, predictions):
            if prediction is not None:
                if self._queue or len(good) > 1:
                    self._helpers.submit(self._encode, request, prediction)
                else:
                    self._encode(request, prediction)

    def _encode(self, request: QueuedRequest, prediction: Prediction) -> None:
        request.encode(prediction, self._limits)
        request.finish()

    def _publish_depth(self) -> None:
        self._row.set_depth(len(self._queue), len(self._active))


def _can_batch(request: QueuedRequest, head: QueuedRequest) -> bool:
    """True if a queued request can join the batch of `head`: decoded, same image size, same kind of answer."""
    return (
        request.decoding is not None
        and request.decoding.done()
        and request.image is not None
        and head.image is not None
        and request.image.shape == head.image.shape
        and request.form.needs_probabilities == head.form.needs_probabilities
    )
