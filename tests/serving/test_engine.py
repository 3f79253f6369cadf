"""The line before the model: order, bounds, batches, and what becomes of those that fail."""

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
from pspnet.serving.jobs import CancelledJobError, Job
from pspnet.serving.processes.server_metrics import READY, Table
from pspnet.serving.protocol.answers import choose_answer
from pspnet.serving.protocol.request_error import RequestError
from tests.serving.pictures import encoded, noise
from tests.serving.stand_ins import StandIn

Make = Callable[..., Engine]


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


class Asked:
    """A job and its end."""

    def __init__(self, image: np.ndarray, accept: str | None = None, body: bytes | None = None) -> None:
        self.done = threading.Event()
        self.image = image
        body = encoded(image) if body is None else body
        self.job = Job(body, "image/png", choose_answer(accept), lambda _: self.done.set())

    def wait(self) -> Job:
        assert self.done.wait(60)
        return self.job

    def mask(self) -> np.ndarray:
        job = self.wait()
        assert job.error is None, job.error
        assert job.answer is not None
        return np.asarray(Image.open(io.BytesIO(job.answer)))

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


def test_the_model_answers_once_it_is_warm(make: Make) -> None:
    predictor = StandIn()
    predictor.hold()
    engine = make(predictor, wait=False)
    assert predictor.entered.wait(60)
    assert engine.problem() == "The model is being loaded."
    with pytest.raises(RequestError, match="being loaded") as caught:
        engine.submit(Asked(noise(32, 32)).job)
    assert caught.value.status == 503
    predictor.go.set()
    until(lambda: engine.problem() is None)
    assert predictor.prepared == [([(32, 32)], 1)]
    image = noise(40, 33)
    asked = Asked(image)
    engine.submit(asked.job)
    assert np.array_equal(asked.mask(), image[..., 0] % 3)
    assert set(asked.job.seconds) == {"queue", "decode", "predict", "encode"}
    assert all(0 <= seconds < 60 for seconds in asked.job.seconds.values())


def test_a_model_that_cannot_be_loaded_is_told_and_never_answers() -> None:
    told: list[Exception | None] = []

    def load() -> Any:
        raise WeightsError("no such model")

    engine = Engine(load, Limits(), Table().rows[0], on_started=told.append)
    engine.start()
    assert engine.join(60)
    assert [str(error) for error in told] == ["no such model"]
    assert engine.problem() == "The model's thread has ended."
    assert not engine.lost  # it never lived; its supervisor hears of it by on_started
    with pytest.raises(RequestError):
        engine.submit(Asked(noise(32, 32)).job)


def test_a_full_line_refuses_and_keeps_what_it_has(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, queue=2)
    predictor.hold()
    asked = [Asked(noise(32, 32, seed)) for seed in range(4)]
    engine.submit(asked[0].job)
    assert predictor.entered.wait(60)
    engine.submit(asked[1].job)
    engine.submit(asked[2].job)
    assert engine.full
    with pytest.raises(RequestError, match="more requests than") as caught:
        engine.submit(asked[3].job)
    assert caught.value.status == 503
    assert 1 <= engine.retry_after() <= 60
    predictor.go.set()
    for each in asked[:3]:
        assert np.array_equal(each.mask(), each.image[..., 0] % 3)
    assert not engine.full


def waiting_together(engine: Engine, predictor: StandIn, asked: list[Asked]) -> None:
    """The first job runs while the others wait and are decoded; then all go on."""
    predictor.hold()
    engine.submit(asked[0].job)
    assert predictor.entered.wait(60)
    for each in asked[1:]:
        engine.submit(each.job)
    ahead = [each.job.decoding for each in asked[1:] if each.job.decoding is not None]
    until(lambda: all(future.done() for future in ahead))
    predictor.go.set()
    for each in asked:
        each.wait()


def test_images_of_one_size_that_wait_run_together(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, max_batch=3)
    sizes = [(32, 32), (32, 40), (32, 40), (48, 32), (32, 40)]
    asked = [Asked(noise(*size, seed)) for seed, size in enumerate(sizes)]
    waiting_together(engine, predictor, asked)
    # The first one ran alone; of the others three were decoded ahead, and two of those have one size.
    assert predictor.batches[:2] == [[(32, 32)], [(32, 40), (32, 40)]]
    assert sorted(size for batch in predictor.batches for size in batch) == sorted(sizes)
    for each in asked:
        assert np.array_equal(each.mask(), each.image[..., 0] % 3)


def test_a_cpu_runs_them_one_by_one(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    asked = [Asked(noise(32, 32, seed)) for seed in range(4)]
    waiting_together(engine, predictor, asked)
    assert predictor.batches == [[(32, 32)]] * 4


def test_answers_of_two_kinds_do_not_share_a_batch(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, max_batch=4)
    accepts = [None, "image/png", "application/x-protobuf", "application/json"]
    asked = [Asked(noise(32, 32, seed), accept) for seed, accept in enumerate(accepts)]
    waiting_together(engine, predictor, asked)
    assert predictor.batches == [[(32, 32)], [(32, 32), (32, 32)], [(32, 32)]]
    assert all(each.job.answer for each in asked)


def test_one_bad_image_does_not_spoil_its_batch(make: Make) -> None:
    def refuse_dark(images: list[np.ndarray]) -> None:
        if any(not image.any() for image in images):
            raise RuntimeError("cannot see")

    predictor = StandIn(refuse_dark)
    engine = make(predictor, max_batch=4)
    asked = [
        Asked(noise(32, 32)),
        Asked(noise(32, 32, 1)),
        Asked(np.zeros((32, 32, 3), np.uint8)),
        Asked(noise(32, 32)),
    ]
    waiting_together(engine, predictor, asked)
    assert str(asked[2].job.error) == "cannot see"
    assert not isinstance(asked[2].job.error, RequestError)
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
def test_too_little_memory_is_a_refusal(make: Make, error: Exception) -> None:
    def fail(images: list[np.ndarray]) -> None:
        if images[0].shape[0] > 40:
            raise error

    engine = make(StandIn(fail))
    large, small = Asked(noise(64, 64)), Asked(noise(32, 32))
    engine.submit(large.job)
    assert large.status() == 503
    assert "memory" in str(large.job.error)
    engine.submit(small.job)
    assert small.mask().shape == (32, 32)


def test_a_body_that_is_no_image_never_reaches_the_model(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    asked = Asked(noise(32, 32), body=b"no image")
    engine.submit(asked.job)
    assert asked.status() == 400
    assert predictor.batches == []


def test_who_has_gone_is_not_computed_for(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, queue=1)
    predictor.hold()
    first, second, third = (Asked(noise(32, 32, seed)) for seed in range(3))
    engine.submit(first.job)
    assert predictor.entered.wait(60)
    engine.submit(second.job)
    engine.cancel(second.job)
    engine.submit(third.job)  # its place is free again
    predictor.go.set()
    assert third.mask().shape == (32, 32)
    assert len(predictor.batches) == 2
    assert not second.done.is_set()
    fourth = Asked(noise(32, 32))
    fourth.job.cancelled = True
    engine.submit(fourth.job)
    assert isinstance(fourth.wait().error, CancelledJobError)


def test_closing_answers_those_in_line_and_refuses_new_ones(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    predictor.hold()
    first, second = Asked(noise(32, 32)), Asked(noise(32, 32, 1))
    engine.submit(first.job)
    assert predictor.entered.wait(60)
    engine.submit(second.job)
    engine.close()
    with pytest.raises(RequestError, match="stopping"):
        engine.submit(Asked(noise(32, 32)).job)
    predictor.go.set()
    assert first.mask().shape == second.mask().shape == (32, 32)
    assert engine.join(60)


def test_aborting_answers_those_in_line_with_a_refusal(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor)
    predictor.hold()
    first, second = Asked(noise(32, 32)), Asked(noise(32, 32, 1))
    engine.submit(first.job)
    assert predictor.entered.wait(60)
    engine.submit(second.job)
    engine.abort()
    assert second.status() == 503
    predictor.go.set()
    assert first.mask().shape == (32, 32)


def test_a_stuck_model_is_noticed(make: Make) -> None:
    predictor = StandIn()
    engine = make(predictor, stuck_seconds=0.05)
    assert not engine.lost
    predictor.hold()
    asked = Asked(noise(32, 32))
    engine.submit(asked.job)
    until(lambda: engine.lost)
    assert engine.problem() == "The model has not answered for 0.05 seconds."
    predictor.go.set()
    asked.wait()
    until(lambda: engine.problem() is None)


def test_a_large_image_of_many_passes_is_no_stuck_model(make: Make) -> None:
    begun = []
    predictor = StandIn()
    engine = make(predictor)

    def take_a_while(_images: list[np.ndarray]) -> None:
        begun.append(engine._busy_since)  # what stuck_seconds counts from
        time.sleep(0.01)

    predictor.before, predictor.passes = take_a_while, 8
    asked = Asked(noise(32, 32))
    engine.submit(asked.job)
    assert asked.mask().shape == (32, 32)
    assert all(later - earlier >= 0.009 for earlier, later in zip(begun, begun[1:]))
    assert len(begun) == 8


def test_nobodys_large_image_ends_with_the_pass_that_runs(make: Make) -> None:
    passes = []
    predictor = StandIn()
    engine = make(predictor)
    asked = Asked(noise(32, 32))

    def leave(_images: list[np.ndarray]) -> None:
        passes.append(1)
        if len(passes) == 3:
            engine.cancel(asked.job)

    predictor.before, predictor.passes = leave, 100
    engine.submit(asked.job)
    assert isinstance(asked.wait().error, CancelledJobError)
    assert len(passes) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_models_thread_that_dies_lets_nobody_wait(make: Make) -> None:
    def die(images: list[np.ndarray]) -> None:
        raise SystemExit

    predictor = StandIn()
    engine = make(predictor)
    predictor.before = die
    predictor.hold()
    first, second = Asked(noise(32, 32)), Asked(noise(32, 32))
    engine.submit(first.job)
    assert predictor.entered.wait(60)
    engine.submit(second.job)
    predictor.go.set()
    assert first.status() == 503
    assert second.status() == 503
    assert engine.join(60)
    assert engine.lost
    assert engine.problem() == "The model's thread has ended."


def test_the_row_tells_depth_and_state() -> None:
    table, predictor = Table(), StandIn()
    engine = Engine(lambda: predictor, Limits(), table.rows[0], warmup_size=(32, 32))  # type: ignore
    engine.start()
    until(lambda: engine.problem() is None)
    assert table.rows[0].state == READY
    predictor.hold()
    asked = [Asked(noise(32, 32)) for _ in range(3)]
    for each in asked:
        engine.submit(each.job)
    assert predictor.entered.wait(60)
    assert "pspnet_queue_depth 2\n" in table.render()
    assert "pspnet_active_requests 1\n" in table.render()
    predictor.go.set()
    engine.close()
    assert engine.join(60)
    assert "pspnet_queue_depth 0\n" in table.render()
    assert "pspnet_batch_images_count 3\n" in table.render()
