"""Delivery to one sink: retries, spilling, order, abandoned sinks, and recovery by the next run."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pspnet.masks.frames import MaskedFrame
from pspnet.stream.delivery import Delivery, DeliveryLimits
from pspnet.stream.sinks.base import SinkClosed, SinkError
from pspnet.stream.spill_queue import SpillQueue
from pspnet.stream.statistics import SinkStatistics
from tests.stream.fakes import ListSink, masked, wait_until

TEMPORARY = SinkError("list: away.", temporary=True)
FATAL = SinkError("forbidden.", temporary=False)
QUICK = DeliveryLimits(depth=3, patience=0.2, grace=0.5, first_pause=0.01, longest_pause=0.05)


class DeliveryRun:
    """A running delivery and its messages."""

    def __init__(self, sink: ListSink, folder: Path, limits: DeliveryLimits = QUICK, spill_bytes: int = 10**7) -> None:
        self.messages: list[str] = []
        self.statistics = SinkStatistics(sink.name)
        spill = SpillQueue(folder, spill_bytes, self.statistics, self.messages.append) if sink.spills else None
        self.delivery = Delivery(sink, spill, self.statistics, self.messages.append, limits)
        self.delivery.start()

    def put(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.delivery.put(masked(number))

    def end(self) -> None:
        self.delivery.finish()
        self.delivery.join()


def spill_of_another_stream(folder: Path) -> SpillQueue:
    """Return a spill folder locked by another stream, with item 100 in it."""
    other = SpillQueue(folder, 10**6, SinkStatistics("other"))
    other.append(masked(100))
    return other


def test_items_arrive_in_order_and_the_sink_is_flushed_and_closed(tmp_path: Path) -> None:
    sink = ListSink()
    run = DeliveryRun(sink, tmp_path / "s")
    run.put(range(40))
    run.end()
    assert sink.numbers == list(range(40))
    assert sink.masks == sink.numbers
    assert sink.flushed == 1
    assert sink.closed
    assert run.statistics["delivered"] == 40
    assert run.messages == []
    assert not (tmp_path / "s").exists()


def test_a_failed_write_is_retried_with_the_same_item(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, TEMPORARY, TEMPORARY, None, TEMPORARY])
    run = DeliveryRun(sink, tmp_path / "s")
    run.put(range(20))
    run.end()
    assert sink.numbers == list(range(20))
    assert run.statistics["retries"] == 3
    assert run.messages[0] == "list: away. Retrying with exponential backoff; items are queued."
    assert run.messages[1].startswith("list: recovered after")


def test_items_are_spilled_while_a_sink_is_down_and_keep_their_order(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s")
    run.put(range(30))
    assert run.statistics["spilled"] == 27
    assert len(list((tmp_path / "s").glob("item-*.png"))) == 27
    sink.down = None
    run.put(range(30, 40))
    run.end()
    assert sink.numbers == list(range(40))
    assert sink.masks == list(range(40))
    assert run.statistics["delivered"] == 40
    assert run.statistics.summary()["on_disk"] == 0
    assert not (tmp_path / "s").exists()


def test_undelivered_items_are_reported_and_delivered_first_by_the_next_run(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    first = DeliveryRun(sink, tmp_path / "s")
    first.put(range(10))
    first.end()
    assert sink.numbers == []
    assert first.statistics.summary()["on_disk"] == 10
    assert first.messages[-1] == (
        f"list: 10 items were not delivered; they are in {tmp_path / 's'}, and the next run with the same --spill "
        "delivers them first."
    )
    assert "list: gave up: away." in first.messages
    again = ListSink()
    second = DeliveryRun(again, tmp_path / "s")
    second.put(range(10, 20))
    second.end()
    assert again.numbers == list(range(20))
    assert second.messages[0] == f"list: delivering 10 items of an earlier run from {tmp_path / 's'} first."
    assert (second.statistics["recovered"], second.statistics["delivered"]) == (10, 10)


def test_a_permanent_error_abandons_the_sink_and_spills_its_items(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, None, FATAL])
    run = DeliveryRun(sink, tmp_path / "s")
    run.put([0, 1])
    wait_until(lambda: sink.numbers == [0, 1])
    run.put(range(2, 9))
    wait_until(lambda: run.delivery.dead)
    run.put([9])
    run.end()
    assert sink.numbers == [0, 1]
    assert "list: gave up: forbidden." in run.messages
    left = SpillQueue(tmp_path / "s", 10**6, SinkStatistics("next"))
    numbers = []
    while (item := left.first()) is not None:
        numbers.append(item.frame.index)
        left.remove_first()
    assert numbers == list(range(2, 10))
    assert run.statistics["lost"] == 0


def test_a_full_spill_folder_is_reported_once_and_the_loss_counted(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s", spill_bytes=2000)
    run.put(range(60))
    lost = run.statistics["lost"]
    assert 0 < lost < 60
    assert len([text for text in run.messages if "limit of 2,000 bytes (--spill_bytes) is reached" in text]) == 1
    sink.down = None
    run.end()
    assert sink.numbers == list(range(60 - lost))
    assert run.statistics["delivered"] + lost == 60


def test_a_spill_folder_locked_by_another_stream_is_reported_and_the_loss_counted(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s")
    other = spill_of_another_stream(tmp_path / "s")
    run.put(range(10))
    assert run.statistics["lost"] == 7
    message = f"list: cannot spill to {tmp_path / 's'}: another stream uses it; pass another --spill."
    assert run.messages.count(message) == 1
    sink.down = None
    run.end()
    assert sink.numbers == [0, 1, 2]
    assert len(other) == 1


def test_items_left_by_another_stream_are_delivered_too(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s")
    other = spill_of_another_stream(tmp_path / "s")
    other.close()
    run.put(range(10))
    sink.down = None
    run.end()
    assert sink.numbers == [0, 1, 2, 100, *range(3, 10)]
    assert (run.statistics["recovered"], run.statistics["delivered"]) == (1, 10)


def test_items_of_an_abandoned_sink_are_lost_if_another_stream_holds_the_folder(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s")
    run.put([0, 1])
    other = spill_of_another_stream(tmp_path / "s")
    run.end()
    assert run.statistics["lost"] == 2
    assert len(other) == 1
    assert "another stream uses it" in run.messages[1]


def test_without_patience_limit_and_disk_space_the_stream_waits_for_the_sink(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    limits = DeliveryLimits(depth=3, patience=None, grace=5.0, first_pause=0.01, longest_pause=0.05)
    run = DeliveryRun(sink, tmp_path / "s", limits, spill_bytes=0)
    feeder = threading.Thread(target=run.put, args=(range(8),), daemon=True)
    feeder.start()
    wait_until(lambda: any("is reached" in text for text in run.messages))
    sink.down = None
    feeder.join(30)
    assert not feeder.is_alive()
    run.end()
    assert sink.numbers == list(range(8))
    assert (run.statistics["lost"], run.statistics["spilled"]) == (0, 0)


def test_a_sink_that_closes_while_an_item_waits_for_disk_raises_nothing(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    limits = DeliveryLimits(depth=3, patience=None, grace=5.0, first_pause=0.01, longest_pause=0.05)
    run = DeliveryRun(sink, tmp_path / "s", limits, spill_bytes=0)
    failed: list[Exception] = []

    def feed() -> None:
        try:
            run.put(range(5))
        except Exception as error:
            failed.append(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    wait_until(lambda: any("is reached" in text for text in run.messages))
    sink.down = SinkClosed("the reader closed the pipe.")
    feeder.join(30)
    assert not feeder.is_alive()
    assert failed == []
    run.end()


def test_a_slow_sink_blocks_the_model_without_patience_limit(tmp_path: Path) -> None:
    sink = ListSink(pause=0.02)
    run = DeliveryRun(sink, tmp_path / "s", DeliveryLimits(depth=3, patience=None, grace=5.0))
    run.put(range(30))
    assert len(sink.numbers) >= 26
    run.end()
    assert sink.numbers == list(range(30))
    assert run.statistics["spilled"] == 0


def test_a_display_skips_old_items(tmp_path: Path) -> None:
    sink = ListSink(durable=False, pause=0.05)
    run = DeliveryRun(sink, tmp_path / "s")
    run.put(range(50))
    run.end()
    assert sink.numbers[-1] == 49
    assert len(sink.numbers) < 50
    assert run.statistics["skipped"] + len(sink.numbers) == 50
    assert run.statistics["lost"] == 0


def test_a_display_continues_after_an_item_arrives_while_it_draws(tmp_path: Path) -> None:
    class Drawing(ListSink):
        def __init__(self) -> None:
            super().__init__(durable=False)
            self.drawing, self.resume = threading.Event(), threading.Event()

        def write(self, item: MaskedFrame) -> None:
            self.drawing.set()
            self.resume.wait(60)
            super().write(item)

    sink = Drawing()
    run = DeliveryRun(sink, tmp_path / "s")
    run.put([0])
    assert sink.drawing.wait(60)
    run.put([1, 2])
    sink.resume.set()
    run.end()
    assert sink.numbers == [0, 2]
    assert run.messages == []
    assert (run.statistics["skipped"], run.statistics["delivered"]) == (1, 2)


def test_items_of_a_closed_sink_are_discarded(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, SinkClosed("the reader closed the pipe.")])
    run = DeliveryRun(sink, tmp_path / "s")
    run.put(range(20))
    run.end()
    assert sink.numbers == [0]
    assert run.messages == ["list: the reader closed the pipe."]
    assert run.delivery.dead
    assert not (tmp_path / "s").exists()


def test_an_unexpected_exception_of_a_sink_spills_its_items_and_is_raised(tmp_path: Path) -> None:
    class Broken(ListSink):
        def write(self, item: MaskedFrame) -> None:
            raise ZeroDivisionError("oops")

    run = DeliveryRun(Broken(), tmp_path / "s")
    run.put(range(4))
    with pytest.raises(ZeroDivisionError, match="oops"):
        run.end()
    assert len(list((tmp_path / "s").glob("item-*.png"))) == 4


def test_a_sink_that_hangs_in_its_last_flush_is_reported_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(ListSink):
        def flush(self) -> None:
            time.sleep(3600)

    monkeypatch.setattr("pspnet.stream.delivery._HANGING", 0.2)
    run = DeliveryRun(Hanging(), tmp_path / "s")
    run.put(range(3))
    run.end()
    assert len(run.messages) == 1
    assert run.messages[0].startswith("list: gave up: no response for ")
    assert run.statistics.summary()["unfinished"] == 1


def test_a_sink_that_fails_to_close_is_reported_and_counted(tmp_path: Path) -> None:
    class Unclosed(ListSink):
        def close(self) -> None:
            raise SinkError("list: two segments wait in spool.", temporary=True)

    run = DeliveryRun(Unclosed(), tmp_path / "s")
    run.put(range(3))
    run.end()
    assert run.messages == ["list: two segments wait in spool."]
    assert run.statistics.summary()["unfinished"] == 1
    assert run.statistics["delivered"] == 3


def test_a_sink_without_spill_folder_loses_new_items_while_it_fails_and_is_not_waited_for(tmp_path: Path) -> None:
    sink = ListSink(spills=False)
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s", DeliveryLimits(depth=3, patience=30.0, grace=5.0, first_pause=0.01))
    run.put([0])
    wait_until(lambda: run.statistics["retries"] > 0)
    started = time.monotonic()
    run.put(range(1, 10))
    assert time.monotonic() - started < 5
    assert run.statistics["lost"] == 7
    sink.down = None
    run.end()
    assert sink.numbers == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_sink_without_spill_folder_blocks_the_stream_if_nothing_may_be_lost(tmp_path: Path) -> None:
    sink = ListSink(spills=False)
    sink.down = TEMPORARY
    limits = DeliveryLimits(depth=3, patience=None, grace=5.0, first_pause=0.01, longest_pause=0.05)
    run = DeliveryRun(sink, tmp_path / "s", limits)
    feeder = threading.Thread(target=run.put, args=(range(8),), daemon=True)
    feeder.start()
    wait_until(lambda: run.statistics["retries"] > 3)
    assert feeder.is_alive()
    sink.down = None
    feeder.join(30)
    run.end()
    assert sink.numbers == list(range(8))
    assert run.statistics["lost"] == 0


@pytest.mark.slow
def test_a_hanging_sink_without_spill_folder_is_waited_for_once(tmp_path: Path) -> None:
    sink = ListSink(spills=False, pause=1.0)
    run = DeliveryRun(sink, tmp_path / "s")
    started = time.monotonic()
    run.put(range(20))
    assert time.monotonic() - started < 0.9
    assert run.statistics["lost"] >= 16
    run.end()


def test_items_of_an_abandoned_sink_without_spill_folder_are_lost(tmp_path: Path) -> None:
    sink = ListSink(spills=False)
    sink.down = TEMPORARY
    run = DeliveryRun(sink, tmp_path / "s")
    run.put(range(2))
    run.end()
    assert run.statistics["lost"] == 2
