"""The model's thread and the line of requests before it.

One thread alone runs the model: OpenMP keeps a pool of threads for every thread that calls it, so a second one would
fight the first for the cores. An image that finds the line empty is decoded, predicted and encoded by that thread, with
one change of threads on the way in and one on the way out. Only while others wait do helper threads decode the next
images and encode the last answers beside the running model.
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
from pspnet.inference.predictor import Prediction, Predictor
from pspnet.serving.jobs import BUSY, STOPPING, CancelledJobError, Job, predict_jobs
from pspnet.serving.processes.server_metrics import READY, Row
from pspnet.serving.processes.server_metrics import STOPPING as ROW_STOPPING
from pspnet.serving.protocol.answers import choose_answer
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.serve_settings import AUTO, GPU_BATCH


class Engine:
    """Answers jobs one batch after another. All public methods may be called from any thread.

    Args:
        load: makes the predictor; runs in the model's thread.
        queue: jobs that may wait.
        max_batch: images of one size that run together; `auto`: 1 on CPUs, GPU_BATCH on GPUs.
        warmup_size: (width, height) of the first images.
        stuck_seconds: a pass of the network that takes longer means that the model is stuck.
        on_started: called in the model's thread with None when the model has answered its first image, or with the
            exception because of which it never will.
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
        self._queue, self._max_batch, self._warmup_size, self._stuck = queue, max_batch, warmup_size, stuck_seconds
        self._changed = threading.Condition()
        self._line: deque[Job] = deque()
        self._active: list[Job] = []
        self._batch_limit = 1
        self._stopped = False
        self._ready = False
        self._busy_since: float | None = None
        self._image_seconds = 0.1  # of late; only for Retry-After
        self._helpers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Load the model and warm it up, in the model's thread."""
        self._thread.start()

    def problem(self) -> str | None:
        """None when the model answers, else one sentence that says why it does not."""
        if not self._ready and self._thread.is_alive():
            return "The model is being loaded."
        if not self._thread.is_alive():
            return "The model's thread has ended."
        if self._is_stuck():
            return f"The model has not answered for {self._stuck:g} seconds."
        return "The endpoint is stopping." if self._stopped else None

    @property
    def lost(self) -> bool:
        """Whether the model answered once and will not answer again: its thread has ended or is stuck."""
        return self._ready and not self._stopped and (not self._thread.is_alive() or self._is_stuck())

    def _is_stuck(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > self._stuck

    @property
    def full(self) -> bool:
        """Whether one more job would be refused."""
        return len(self._line) >= self._queue

    def retry_after(self) -> int:
        """Whole seconds until half of the line should be gone, 1..60."""
        return max(1, min(60, math.ceil(len(self._line) * self._image_seconds / 2)))

    def submit(self, job: Job) -> None:
        """Put a job in line. Raises RequestError 503 where the line is full or the model does not answer."""
        with self._changed:
            if self._stopped:
                raise RequestError(503, STOPPING)
            if not self._ready or not self._thread.is_alive():
                raise RequestError(503, self.problem() or STOPPING)
            if len(self._line) >= self._queue:
                raise RequestError(503, BUSY)
            self._line.append(job)
            if self._active:
                self._look_ahead()
            self._tell_depth()
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Forget a job whose caller has gone. One that the model works on ends with the pass that is running."""
        with self._changed:
            job.cancelled = True
            if job in self._line:
                self._line.remove(job)
                self._tell_depth()

    def close(self) -> None:
        """Refuse new jobs; those in line are answered."""
        with self._changed:
            self._stopped = True
            self._row.state = ROW_STOPPING
            self._changed.notify()

    def abort(self) -> None:
        """Close, and answer those in line with 503."""
        self.close()
        with self._changed:
            waiting = list(self._line)
            self._line.clear()
        for job in waiting:
            job.error = RequestError(503, STOPPING)
            job.finish()

    def join(self, seconds: float) -> bool:
        """Wait for the model's thread to end; whether it did."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            predictor = self._load()
            self._warm_up(predictor)
            predictor.before_pass = self._go_on
        except Exception as error:
            self._on_started(error)
            return
        gc.freeze()  # what is loaded by now stays: a collection must not look through it while a frame waits
        with self._changed:
            self._ready = True
            if not self._stopped:
                self._row.state = READY
        self._on_started(None)
        try:
            while self._take():
                self._answer(predictor)
        finally:
            self._end(died=not self._stopped)

    def _end(self, died: bool) -> None:
        """The thread ends, at a stop or by a defect: nobody may wait for ever."""
        for job in self._active:
            if job.answer is None and job.error is None:
                job.error = RequestError(503, STOPPING)
                job.finish()
        self.abort()
        self._stopped = not died  # `lost` then tells the difference
        self._helpers.shutdown(wait=True)

    def _warm_up(self, predictor: Predictor) -> None:
        """Answer images as requests do; the first one of a process is slow, and it proves that the model works."""
        self._batch_limit = self._max_batch if isinstance(self._max_batch, int) else 1
        if self._max_batch == AUTO and predictor.device.type == "cuda":
            self._batch_limit = GPU_BATCH
        width, height = self._warmup_size
        predictor.prepare([(height, width)], self._batch_limit)
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for kind in ("PNG", "JPEG"):
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, format=kind)
            job = Job(buffer.getvalue(), f"image/{kind.lower()}", choose_answer(None), lambda _: None)
            job.decode(self._limits)
            for prediction in predict_jobs(predictor, [job]) if job.error is None else []:
                if prediction is not None:
                    job.encode(prediction, self._limits)
            if job.error is not None:
                raise job.error
        if self._batch_limit > 1:
            predictor.predict([noise] * self._batch_limit)

    def _take(self) -> bool:
        """Wait for a job, and make it and those that may run with it the active ones; False at a stop."""
        with self._changed:
            self._active, self._busy_since = [], None
            self._tell_depth()
            while not self._line:
                if self._stopped:
                    return False
                self._changed.wait()
            head = self._line.popleft()
            self._active = [head]
            self._busy_since = time.monotonic()
            if self._line:
                self._look_ahead()
            self._tell_depth()
        self._decode(head)
        if head.image is not None and self._batch_limit > 1:
            with self._changed:
                others = [job for job in self._line if _fits(job, head)][: self._batch_limit - 1]
                for job in others:
                    self._line.remove(job)
                self._active += others
                if self._line:
                    self._look_ahead()
                self._tell_depth()
        return True

    def _go_on(self) -> None:
        """Before each pass: the model is alive. A large image has many, which nobody may wait for any more."""
        self._busy_since = time.monotonic()
        if all(job.cancelled for job in self._active):
            raise CancelledJobError

    def _look_ahead(self) -> None:
        """Have the next images decoded meanwhile: as many as the next batch takes, which bounds the memory."""
        for index, job in enumerate(self._line):
            if index >= self._batch_limit:
                return
            if job.decoding is None:
                job.decoding = self._helpers.submit(job.decode, self._limits)

    def _decode(self, job: Job) -> None:
        if job.decoding is None or job.decoding.cancel():
            job.decode(self._limits)
        else:
            job.decoding.result()

    def _answer(self, predictor: Predictor) -> None:
        """Predict the active jobs and give each its answer."""
        for job in self._active:
            if job.cancelled:
                job.error = CancelledJobError()
            job.check(len(predictor.class_names), self._limits)
            waited = time.perf_counter() - job.submitted - job.seconds.get("decode", 0.0)
            job.seconds["queue"] = max(0.0, waited)
        good = [job for job in self._active if job.error is None]
        predictions = predict_jobs(predictor, good) if good else []
        if good:
            self._row.batch(len(good))
            self._image_seconds += 0.2 * (good[0].seconds["predict"] / len(good) - self._image_seconds)
        for job in self._active:
            if job.error is not None:
                job.finish()
        for job, prediction in zip(good, predictions):
            if prediction is not None:
                if self._line or len(good) > 1:
                    self._helpers.submit(self._encode, job, prediction)
                else:
                    self._encode(job, prediction)

    def _encode(self, job: Job, prediction: Prediction) -> None:
        job.encode(prediction, self._limits)
        job.finish()

    def _tell_depth(self) -> None:
        self._row.depth(len(self._line), len(self._active))


def _fits(job: Job, head: Job) -> bool:
    """Whether a waiting job can run in one batch with the first one: decoded, of one size, one kind of answer."""
    return (
        job.decoding is not None
        and job.decoding.done()
        and job.image is not None
        and head.image is not None
        and job.image.shape == head.image.shape
        and job.form.needs_probabilities == head.form.needs_probabilities
    )
