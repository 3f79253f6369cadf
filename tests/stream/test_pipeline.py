"""Pipeline with fake parts: policies, stopping, failures, and constant memory."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest

from pspnet.errors import PspnetError
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.delivery import Delivery, DeliveryLimits
from pspnet.stream.model import Model, ModelUnavailable
from pspnet.stream.pipeline import Pipeline, PipelineSettings
from pspnet.stream.sinks.base import SinkClosed
from pspnet.stream.sources.base import Source, SourceError
from pspnet.stream.spill_queue import SpillQueue
from pspnet.stream.statistics import Statistics
from tests.stream.fakes import CountingSource, InstantModel, ListSink, wait_until


class Stream:
    """A pipeline and its parts."""

    def __init__(
        self, tmp_path: Path, source: Source, model: Model, *sinks: ListSink, latest: bool = False, grace: float = 5.0
    ) -> None:
        self.statistics = Statistics()
        self.messages: list[str] = []
        limits = DeliveryLimits(patience=2.0 if latest else None, grace=grace, first_pause=0.01, longest_pause=0.05)
        deliveries = []
        for sink in sinks:
            counts, report = self.statistics.sink(sink.name), self.messages.append
            spill = SpillQueue(tmp_path / sink.name, 10**7, counts, report) if sink.spills else None
            deliveries.append(Delivery(sink, spill, counts, report, limits))
        settings = PipelineSettings(latest, grace=grace, first_pause=0.01, longest_pause=0.05)
        self.pipeline = Pipeline(source, model, deliveries, self.statistics, settings, self.messages.append)
        self.stop = threading.Event()

    def run(self) -> None:
        self.pipeline.run(self.stop.is_set, lambda: None)


def test_every_frame_of_a_file_reaches_every_sink_in_order(tmp_path: Path) -> None:
    first, second = ListSink("first"), ListSink("second", pause=0.002)
    model = InstantModel()
    stream = Stream(tmp_path, CountingSource(60), model, first, second)
    stream.run()
    assert first.numbers == second.numbers == list(range(60))
    assert first.masks == list(range(60))
    assert model.prepared == [(4, 6)]
    assert model.closed
    counts = stream.statistics
    assert (counts["read"], counts["masks"], counts["late"], counts["failed"]) == (60, 60, 0, 0)


def test_late_frames_are_dropped_and_counted(tmp_path: Path) -> None:
    source = CountingSource(100, live=True, between=lambda _: time.sleep(0.002))
    sink = ListSink()
    stream = Stream(tmp_path, source, InstantModel(lambda _: time.sleep(0.02)), sink, latest=True)
    stream.run()
    counts = stream.statistics
    assert counts["read"] == 100
    assert counts["late"] > 20
    assert counts["masks"] + counts["late"] == 100
    assert sink.numbers == sorted(sink.numbers)
    assert sink.numbers[-1] == 99
    assert len(sink.numbers) == counts["masks"]


def test_a_stop_delivers_all_accepted_frames(tmp_path: Path) -> None:
    source = CountingSource(10**9)
    sink = ListSink(pause=0.001)
    stream = Stream(tmp_path, source, InstantModel(), sink)
    runner = threading.Thread(target=stream.run)
    runner.start()
    wait_until(lambda: len(sink.numbers) > 20)
    stream.stop.set()
    runner.join(60)
    assert not runner.is_alive()
    assert source.closed.is_set()
    assert sink.numbers == list(range(stream.statistics["read"]))
    assert sink.closed


def test_a_failed_frame_is_reported_and_the_stream_continues(tmp_path: Path) -> None:
    def refuse(value: int) -> None:
        if value % 2:
            raise PspnetError(f"odd {value}.")

    sink = ListSink()
    stream = Stream(tmp_path, CountingSource(20), InstantModel(refuse), sink)
    stream.run()
    assert sink.numbers == list(range(0, 20, 2))
    assert stream.statistics["failed"] == 10
    assert stream.messages[0] == "frame 1 has no mask: odd 1."
    assert stream.messages[-1] == "frame 9 has no mask: odd 9. More failures are only counted."
    assert len(stream.messages) == 5


def test_an_unavailable_model_is_retried_and_no_frame_of_a_file_is_lost(tmp_path: Path) -> None:
    failures = iter([True] * 3)

    def unavailable(value: int) -> None:
        if value == 5 and next(failures, False):
            raise ModelUnavailable("gone.")

    sink = ListSink()
    stream = Stream(tmp_path, CountingSource(10), InstantModel(unavailable), sink)
    stream.run()
    assert sink.numbers == list(range(10))
    assert stream.messages[0] == "gone. Retrying with exponential backoff."
    assert stream.messages[1].startswith("The model recovered after")
    assert stream.statistics["failed"] == 0


def test_live_frames_are_dropped_while_the_model_is_unavailable(tmp_path: Path) -> None:
    back = threading.Event()

    def unavailable(_value: int) -> None:
        if not back.is_set():
            raise ModelUnavailable("gone.")

    def between(index: int) -> None:
        time.sleep(0.005)
        if index == 40:
            back.set()

    sink = ListSink()
    stream = Stream(tmp_path, CountingSource(60, True, between), InstantModel(unavailable), sink, latest=True)
    stream.run()
    counts = stream.statistics
    assert sink.numbers[0] > 5
    assert sink.numbers[-1] == 59
    assert counts["late"] >= 5
    assert counts["masks"] + counts["late"] + counts["failed"] == 60


def test_a_model_that_stays_unavailable_ends_the_stream_and_all_frames_are_counted(tmp_path: Path) -> None:
    def unavailable(value: int) -> None:
        if value >= 3:
            raise ModelUnavailable("gone.")

    sink = ListSink()
    stream = Stream(tmp_path, CountingSource(10**9), InstantModel(unavailable), sink)
    stream.pipeline._settings = dataclasses.replace(stream.pipeline._settings, give_up=0.05)
    with pytest.raises(ModelUnavailable):
        stream.run()
    assert sink.numbers == [0, 1, 2]
    assert stream.statistics["failed"] == stream.statistics["read"] - 3 > 0


def test_a_stop_does_not_wait_for_an_unavailable_model(tmp_path: Path) -> None:
    def unavailable(_value: int) -> None:
        raise ModelUnavailable("gone.")

    stream = Stream(tmp_path, CountingSource(3), InstantModel(unavailable), ListSink(), latest=True)
    stream.stop.set()
    stream.run()
    assert stream.statistics["failed"] + stream.statistics["late"] == stream.statistics["read"]


def test_a_source_error_is_raised_after_all_deliveries(tmp_path: Path) -> None:
    def breaks(index: int) -> None:
        if index == 7:
            raise SourceError("the camera is gone.")

    sink = ListSink(pause=0.01)
    stream = Stream(tmp_path, CountingSource(20, between=breaks), InstantModel(), sink)
    with pytest.raises(SourceError, match=r"the camera is gone\."):
        stream.run()
    assert sink.numbers == list(range(7))
    assert sink.closed


def test_an_unexpected_exception_of_the_model_ends_the_stream_and_is_raised(tmp_path: Path) -> None:
    def broken(value: int) -> None:
        if value == 4:
            raise ZeroDivisionError("oops")

    sink = ListSink()
    stream = Stream(tmp_path, CountingSource(10**9), InstantModel(broken), sink)
    with pytest.raises(ZeroDivisionError):
        stream.run()
    assert sink.numbers == [0, 1, 2, 3]


def test_a_stream_ends_after_its_last_sink_closed(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, SinkClosed("the window was closed.")])
    stream = Stream(tmp_path, CountingSource(10**9), InstantModel(), sink)
    stream.run()
    assert sink.numbers == [0]
    assert stream.messages == ["list: the window was closed."]


@pytest.mark.slow
def test_a_hanging_sink_does_not_block_the_other(tmp_path: Path) -> None:
    class Hanging(ListSink):
        released = threading.Event()

        def write(self, item: MaskedFrame) -> None:
            self.released.wait(60)
            super().write(item)

    good, hanging = ListSink("good"), Hanging("hanging")
    source = CountingSource(40, live=True, between=lambda _: time.sleep(0.01))
    stream = Stream(tmp_path, source, InstantModel(), good, hanging, latest=True)
    runner = threading.Thread(target=stream.run)
    runner.start()
    wait_until(lambda: bool(good.numbers) and good.numbers[-1] == 39)
    assert hanging.numbers == []
    hanging.released.set()
    runner.join(60)
    assert hanging.numbers == good.numbers


@pytest.mark.slow
def test_a_stop_does_not_wait_for_a_hanging_sink_and_spills_its_items(tmp_path: Path) -> None:
    class Hanging(ListSink):
        def write(self, item: MaskedFrame) -> None:
            time.sleep(3600)

    monkey = pytest.MonkeyPatch()
    monkey.setattr("pspnet.stream.delivery._HANGING", 0.2)
    sink = Hanging("hanging")
    stream = Stream(tmp_path, CountingSource(10**9), InstantModel(), sink, grace=0.5)
    runner = threading.Thread(target=stream.run, daemon=True)
    runner.start()
    wait_until(lambda: stream.statistics["masks"] >= 9)
    stream.stop.set()
    runner.join(60)
    monkey.undo()
    assert not runner.is_alive()
    kept = len(list((tmp_path / "hanging").glob("item-*.png")))
    assert kept == stream.statistics["masks"] == stream.statistics["read"]
    assert stream.messages[-1].startswith(f"hanging: {kept} items were not delivered; they are in")


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.slow
def test_memory_is_constant_over_an_hour_of_frames(tmp_path: Path) -> None:
    """36,000 frames are an hour at 10 frames per second. The first sixth warms up caches and the allocator."""
    readings: list[int] = []

    def read(index: int) -> None:
        if index % 1000 == 0:
            readings.append(resident_bytes())

    class Counting(ListSink):
        taken = 0

        def write(self, item: MaskedFrame) -> None:
            self.taken += 1

    sink, display = Counting("folder"), Counting("web", durable=False)
    source = CountingSource(36_000, between=read)
    stream = Stream(tmp_path, source, InstantModel(), sink, display)
    stream.run()
    assert sink.taken == 36_000
    assert max(readings[6:]) - readings[6] < 4 * 2**20
