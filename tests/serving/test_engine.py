"""Tests of the request queue and the model thread: order, capacity, batching, failures."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.errors import WeightsError
from pspnet.inference.limits import Limits
from pspnet.serving.engine import Engine
from pspnet.serving.protocol.accept import choose_answer
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.queued_request import QueuedRequest, RequestCancelledError
from pspnet.serving.server_metrics import READY, Table
from tests.serving.pictures import encoded, noise
from tests.serving.stand_ins import StandIn

Make = Callable[..., Engine]


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


class Asked:
    """Request and its result."""

    def __init__(self, image: np.ndarray, accept: str | None = None, body: bytes | None = None) -> None:
        self.done = threading.Event()
        self.image = image
        body = encoded(image) if body is None else body
        self.request = QueuedRequest(body, "image/png", choose_answer(accept), lambda _: self.done.set())

    def wait(self) -> QueuedRequest:
        assert self.done.wait(60)
        return self.request

    def mask(self) -> np.ndarray:
        request = self.wait()
        assert request.error is None, request.error
        assert request.answer is not None
        return np.asarray(Image.open(io.BytesIO(request.answer)))

    def status(self) -> int:
        error = self.wait().error
        assert isinstance(error, RequestError), error
        return error.status


@pytest.fixture
def make() -> Iterator[Make]:
    engines = []

    def start(predictor: StandIn, wait: bool = True, **options: Any) -> Engine:
        table = Table()
        engine = Engine(lambda: predictor, Limits(), table.rows[0], warmup_size=(32, 32), **options)  # type: ignore
        engines.append((engine, predictor))
        engine.start()
        if wait:
            until(lambda: engine.problem() is None)
            predictor.batches.clear()
        return engine

    yield start
    for engine, predictor in engines:
        predictor.go.set()
        engine.abort()
        assert engine.join(60)


def test_model_is_ready_after_warm_up(make: Make) -> None:
    predictor = StandIn()
    predictor.hold()
    engine = make(predictor, wait=False)
    assert predictor.entered.wait(60)
    assert engine.problem() == "The model is being loaded."
    with pytest.raises(RequestError, match="being loaded") as caught:
        engine.submit(Asked(noise(32, 32)).request)
    assert caught.value.status == 503
    predictor.go.set()
    until(lambda: engine.problem() is None)
    assert predictor.prepared == [([(32, 32)], 1)]
    image = noise(40, 33)
    asked = Asked(image)
    engine.submit(asked.request)
    assert np.array_equal(asked.mask(), image[..., 0] % 3)
    assert set(asked.request.seconds) == {"queue", "decode", "predict", "encode"}
    assert all(0 <= seconds < 60 for seconds in asked.request.seconds.values())


def test_failed_load_is_reported() -> None:
    reported: list[Exception | None] = []

    def load() -> Any:
        raise WeightsError("no such model")

    engine = Engine(load, Limits(), Table().rows[0], on_started=reported.append)
    engine.start()
    assert engine.join(60)
    assert [str(error) for error in reported] == ["no such model"]
    assert engine.problem() == "The model thread has ended."
    assert not engine.lost  # it was never ready; on_started has reported it
    with pytest.raises(RequestError):
        engine.submit(Asked(noise(32, 32)).request)


def test_full_queue_rejects_new_requests_and_answers_queued_ones(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, queue=2)
    predictor.hold()
    asked = [Asked(noise(32, 32, seed)) for seed in range(4)]
    engine.submit(asked[0].request)
    assert predictor.entered.wait(60)
    engine.submit(asked[1].request)
    engine.submit(asked[2].request)
    assert engine.full
    with pytest.raises(RequestError, match="more requests than") as caught:
        engine.submit(asked[3].request)
    assert caught.value.status == 503
    assert 1 <= engine.retry_after() <= 60
    predictor.go.set()
    for each in asked[:3]:
        assert np.array_equal(each.mask(), each.image[..., 0] % 3)
    assert not engine.full


def run_queued(engine: Engine, predictor: StandIn, asked: list[Asked]) -> None:
    """Queue and decode the other requests while the first one runs; then release the model."""
    predictor.hold()
    engine.submit(asked[0].request)
    assert predictor.entered.wait(60)
    for each in asked[1:]:
        engine.submit(each.request)
    ahead = [each.request.decoding for each in asked[1:] if each.request.decoding is not None]
    until(lambda: all(future.done() for future in ahead))
    predictor.go.set()
    for each in asked:
        each.wait()


def test_queued_images_of_the_same_size_form_a_batch(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, max_batch=3)
    sizes = [(32, 32), (32, 40), (32, 40), (48, 32), (32, 40)]
    asked = [Asked(noise(*size, seed)) for seed, size in enumerate(sizes)]
    run_queued(engine, predictor, asked)
    # The first one ran alone; three others were prefetched, two of them with the same size.
    assert predictor.batches[:2] == [[(32, 32)], [(32, 40), (32, 40)]]
    assert sorted(size for batch in predictor.batches for size in batch) == sorted(sizes)
    for each in asked:
        assert np.array_equal(each.mask(), each.image[..., 0] % 3)


def test_cpu_runs_images_one_by_one(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    asked = [Asked(noise(32, 32, seed)) for seed in range(4)]
    run_queued(engine, predictor, asked)
    assert predictor.batches == [[(32, 32)]] * 4


def test_different_kinds_of_answers_do_not_share_a_batch(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, max_batch=4)
    accepts = [None, "image/png", "application/x-protobuf", "application/json"]
    asked = [Asked(noise(32, 32, seed), accept) for seed, accept in enumerate(accepts)]
    run_queued(engine, predictor, asked)
    assert predictor.batches == [[(32, 32)], [(32, 32), (32, 32)], [(32, 32)]]
    assert all(each.request.answer for each in asked)


def test_one_bad_image_does_not_fail_its_batch(make: Make) -> None:
    def reject_dark(images: list[np.ndarray]) -> None:
        if any(not image.any() for image in images):
            raise RuntimeError("cannot see")

    predictor = StandIn(reject_dark)
    engine = make(predictor, max_batch=4)
    asked = [
        Asked(noise(32, 32)),
        Asked(noise(32, 32, 1)),
        Asked(np.zeros((32, 32, 3), np.uint8)),
        Asked(noise(32, 32)),
    ]
    run_queued(engine, predictor, asked)
    assert str(asked[2].request.error) == "cannot see"
    assert not isinstance(asked[2].request.error, RequestError)
    for index in (0, 1, 3):
        assert np.array_equal(asked[index].mask(), asked[index].image[..., 0] % 3)
    assert engine.problem() is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_becomes_503(make: Make, error: Exception) -> None:
    def fail(images: list[np.ndarray]) -> None:
        if images[0].shape[0] > 40:
            raise error

    engine = make(StandIn(fail))
    large, small = Asked(noise(64, 64)), Asked(noise(32, 32))
    engine.submit(large.request)
    assert large.status() == 503
    assert "memory" in str(large.request.error)
    engine.submit(small.request)
    assert small.mask().shape == (32, 32)


def test_undecodable_body_does_not_reach_the_model(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    asked = Asked(noise(32, 32), body=b"no image")
    engine.submit(asked.request)
    assert asked.status() == 400
    assert predictor.batches == []


def test_cancelled_request_is_not_predicted(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, queue=1)
    predictor.hold()
    first, second, third = (Asked(noise(32, 32, seed)) for seed in range(3))
    engine.submit(first.request)
    assert predictor.entered.wait(60)
    engine.submit(second.request)
    engine.cancel(second.request)
    engine.submit(third.request)  # the cancelled request has freed a slot
    predictor.go.set()
    assert third.mask().shape == (32, 32)
    assert len(predictor.batches) == 2
    assert not second.done.is_set()
    fourth = Asked(noise(32, 32))
    fourth.request.cancelled = True
    engine.submit(fourth.request)
    assert isinstance(fourth.wait().error, RequestCancelledError)


def test_close_answers_queued_requests_and_rejects_new_ones(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    predictor.hold()
    first, second = Asked(noise(32, 32)), Asked(noise(32, 32, 1))
    engine.submit(first.request)
    assert predictor.entered.wait(60)
    engine.submit(second.request)
    engine.close()
    with pytest.raises(RequestError, match="stopping"):
        engine.submit(Asked(noise(32, 32)).request)
    predictor.go.set()
    assert first.mask().shape == second.mask().shape == (32, 32)
    assert engine.join(60)


def test_abort_answers_queued_requests_with_503(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    predictor.hold()
    first, second = Asked(noise(32, 32)), Asked(noise(32, 32, 1))
    engine.submit(first.request)
    assert predictor.entered.wait(60)
    engine.submit(second.request)
    engine.abort()
    assert second.status() == 503
    predictor.go.set()
    assert first.mask().shape == (32, 32)


def test_stuck_model_is_detected(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, stuck_seconds=0.05)
    assert not engine.lost
    predictor.hold()
    asked = Asked(noise(32, 32))
    engine.submit(asked.request)
    until(lambda: engine.lost)
    assert engine.problem() == "The model has not answered for 0.05 seconds."
    predictor.go.set()
    asked.wait()
    until(lambda: engine.problem() is None)


def test_timeout_applies_to_each_forward_pass(make: Make) -> None:
    begun = []
    predictor = StandIn()
    engine = make(predictor)

    def run_slowly(_images: list[np.ndarray]) -> None:
        begun.append(engine._busy_since)  # start of the timeout
        time.sleep(0.01)

    predictor.before, predictor.passes = run_slowly, 8
    asked = Asked(noise(32, 32))
    engine.submit(asked.request)
    assert asked.mask().shape == (32, 32)
    assert all(later - earlier >= 0.009 for earlier, later in zip(begun, begun[1:]))
    assert len(begun) == 8


def test_cancelled_large_image_ends_after_the_current_forward_pass(make: Make) -> None:
    passes = []
    predictor = StandIn()
    engine = make(predictor)
    asked = Asked(noise(32, 32))

    def cancel(_images: list[np.ndarray]) -> None:
        passes.append(1)
        if len(passes) == 3:
            engine.cancel(asked.request)

    predictor.before, predictor.passes = cancel, 100
    engine.submit(asked.request)
    assert isinstance(asked.wait().error, RequestCancelledError)
    assert len(passes) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_requests_are_answered_if_the_model_thread_dies(make: Make) -> None:
    def die(images: list[np.ndarray]) -> None:
        raise SystemExit

    predictor = StandIn()
    engine = make(predictor)
    predictor.before = die
    predictor.hold()
    first, second = Asked(noise(32, 32)), Asked(noise(32, 32))
    engine.submit(first.request)
    assert predictor.entered.wait(60)
    engine.submit(second.request)
    predictor.go.set()
    assert first.status() == 503
    assert second.status() == 503
    assert engine.join(60)
    assert engine.lost
    assert engine.problem() == "The model thread has ended."


def test_row_reports_queue_depth_and_state() -> None:
    table, predictor = Table(), StandIn()
    engine = Engine(lambda: predictor, Limits(), table.rows[0], warmup_size=(32, 32))  # type: ignore
    engine.start()
    until(lambda: engine.problem() is None)
    assert table.rows[0].state == READY
    predictor.hold()
    asked = [Asked(noise(32, 32)) for _ in range(3)]
    for each in asked:
        engine.submit(each.request)
    assert predictor.entered.wait(60)
    assert "pspnet_queue_depth 2\n" in table.render()
    assert "pspnet_active_requests 1\n" in table.render()
    predictor.go.set()
    engine.close()
    assert engine.join(60)
    assert "pspnet_queue_depth 0\n" in table.render()
    assert "pspnet_batch_images_count 3\n" in table.render()
