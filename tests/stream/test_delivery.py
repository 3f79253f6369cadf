"""One sink: retries, spilling, order, giving up, and going on at the next start."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pspnet.masks.frames import MaskedFrame
from pspnet.stream.delivery import Delivery, DeliveryLimits
from pspnet.stream.sinks.base import SinkClosed, SinkError
from pspnet.stream.spill_folder import SpillFolder
from pspnet.stream.statistics import SinkStatistics
from tests.stream.players import ListSink, masked, wait_until

TEMPORARY = SinkError("list: away.", temporary=True)
FATAL = SinkError("forbidden.", temporary=False)
QUICK = DeliveryLimits(depth=3, patience=0.2, grace=0.5, first_pause=0.01, longest_pause=0.05)


class Played:
    """A delivery with what it said."""

    def __init__(self, sink: ListSink, folder: Path, limits: DeliveryLimits = QUICK, spill_bytes: int = 10**7) -> None:
        self.messages: list[str] = []
        self.statistics = SinkStatistics(sink.name)
        spill = SpillFolder(folder, spill_bytes, sink.wants_images) if sink.durable else None
        self.delivery = Delivery(sink, spill, self.statistics, self.messages.append, limits)
        self.delivery.start()

    def put(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.delivery.put(masked(number))

    def end(self) -> None:
        self.delivery.finish()
        self.delivery.join()


def spill_of_another_stream(folder: Path) -> SpillFolder:
    """It has the folder, with item 100 in it."""
    other = SpillFolder(folder, 10**6, images=False)
    other.append(masked(100))
    return other


def test_items_arrive_in_order_and_the_sink_is_flushed_and_closed(tmp_path: Path) -> None:
    sink = ListSink()
    played = Played(sink, tmp_path / "s")
    played.put(range(40))
    played.end()
    assert sink.numbers == list(range(40))
    assert sink.masks == sink.numbers
    assert sink.flushed == 1
    assert sink.closed
    assert played.statistics["delivered"] == 40
    assert played.messages == []
    assert not (tmp_path / "s").exists()


def test_a_failing_write_is_tried_again_with_the_same_item(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, TEMPORARY, TEMPORARY, None, TEMPORARY])
    played = Played(sink, tmp_path / "s")
    played.put(range(20))
    played.end()
    assert sink.numbers == list(range(20))
    assert played.statistics["retries"] == 3
    assert played.messages[0] == "list: away. Retrying with exponential backoff; items are queued."
    assert played.messages[1].startswith("list: recovered after")


def test_what_comes_while_a_sink_is_down_waits_on_disk_and_keeps_its_order(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    played = Played(sink, tmp_path / "s")
    played.put(range(30))
    assert played.statistics["spilled"] == 27
    assert len(list((tmp_path / "s").glob("item-*.zip"))) == 27
    sink.down = None
    played.put(range(30, 40))
    played.end()
    assert sink.numbers == list(range(40))
    assert sink.masks == list(range(40))
    assert played.statistics["delivered"] == 40
    assert played.statistics.summary()["on_disk"] == 0
    assert not (tmp_path / "s").exists()


def test_what_is_left_at_the_end_is_told_and_goes_first_at_the_next_start(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    first = Played(sink, tmp_path / "s")
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
    second = Played(again, tmp_path / "s")
    second.put(range(10, 20))
    second.end()
    assert again.numbers == list(range(20))
    assert second.messages[0] == f"list: delivering 10 items of an earlier run from {tmp_path / 's'} first."
    assert (second.statistics["recovered"], second.statistics["delivered"]) == (10, 10)


def test_an_error_that_stays_stops_the_sink_and_keeps_everything(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, None, FATAL])
    played = Played(sink, tmp_path / "s")
    played.put([0, 1])
    wait_until(lambda: sink.numbers == [0, 1])
    played.put(range(2, 9))
    wait_until(lambda: played.delivery.dead)
    played.put([9])
    played.end()
    assert sink.numbers == [0, 1]
    assert "list: gave up: forbidden." in played.messages
    left = SpillFolder(tmp_path / "s", 10**6, images=False)
    numbers = []
    while (item := left.first()) is not None:
        numbers.append(item.frame.index)
        left.remove_first()
    assert numbers == list(range(2, 10))
    assert played.statistics["lost"] == 0


def test_a_full_spill_folder_is_said_once_and_the_loss_counted(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    played = Played(sink, tmp_path / "s", spill_bytes=2000)
    played.put(range(60))
    lost = played.statistics["lost"]
    assert 0 < lost < 60
    assert len([text for text in played.messages if "limit of 2,000 bytes (--spill_bytes) is reached" in text]) == 1
    sink.down = None
    played.end()
    assert sink.numbers == list(range(60 - lost))
    assert played.statistics["delivered"] + lost == 60


def test_a_spill_folder_that_another_stream_took_meanwhile_is_told_and_the_loss_counted(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    played = Played(sink, tmp_path / "s")
    other = spill_of_another_stream(tmp_path / "s")
    played.put(range(10))
    assert played.statistics["lost"] == 7
    said = (
        f"list: cannot spill to {tmp_path / 's'}: another stream uses it; pass another --spill."
    )
    assert played.messages.count(said) == 1
    sink.down = None
    played.end()
    assert sink.numbers == [0, 1, 2]
    assert len(other) == 1


def test_what_another_stream_left_meanwhile_is_delivered_too(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    played = Played(sink, tmp_path / "s")
    other = spill_of_another_stream(tmp_path / "s")
    other.close()
    played.put(range(10))
    sink.down = None
    played.end()
    assert sink.numbers == [0, 1, 2, 100, *range(3, 10)]
    assert (played.statistics["recovered"], played.statistics["delivered"]) == (1, 10)


def test_items_of_a_sink_given_up_are_lost_where_another_stream_has_the_folder(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    played = Played(sink, tmp_path / "s")
    played.put([0, 1])
    other = spill_of_another_stream(tmp_path / "s")
    played.end()
    assert played.statistics["lost"] == 2
    assert len(other) == 1
    assert "another stream uses it" in played.messages[1]


def test_without_room_on_disk_a_stream_that_may_lose_nothing_waits_for_the_sink(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    limits = DeliveryLimits(depth=3, patience=None, grace=5.0, first_pause=0.01, longest_pause=0.05)
    played = Played(sink, tmp_path / "s", limits, spill_bytes=0)
    feeder = threading.Thread(target=played.put, args=(range(8),), daemon=True)
    feeder.start()
    wait_until(lambda: any("is reached" in text for text in played.messages))
    sink.down = None
    feeder.join(30)
    assert not feeder.is_alive()
    played.end()
    assert sink.numbers == list(range(8))
    assert (played.statistics["lost"], played.statistics["spilled"]) == (0, 0)


def test_a_reader_that_goes_while_an_item_waits_for_disk_is_no_defect(tmp_path: Path) -> None:
    sink = ListSink()
    sink.down = TEMPORARY
    limits = DeliveryLimits(depth=3, patience=None, grace=5.0, first_pause=0.01, longest_pause=0.05)
    played = Played(sink, tmp_path / "s", limits, spill_bytes=0)
    failed: list[Exception] = []

    def feed() -> None:
        try:
            played.put(range(5))
        except Exception as error:
            failed.append(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    wait_until(lambda: any("is reached" in text for text in played.messages))
    sink.down = SinkClosed("its reader has gone.")
    feeder.join(30)
    assert not feeder.is_alive()
    assert failed == []
    played.end()


def test_a_slow_sink_holds_up_the_model_where_every_frame_counts(tmp_path: Path) -> None:
    sink = ListSink(pause=0.02)
    played = Played(sink, tmp_path / "s", DeliveryLimits(depth=3, patience=None, grace=5.0))
    played.put(range(30))
    assert len(sink.numbers) >= 26
    played.end()
    assert sink.numbers == list(range(30))
    assert played.statistics["spilled"] == 0


def test_a_display_shows_the_present_alone(tmp_path: Path) -> None:
    sink = ListSink(durable=False, pause=0.05)
    played = Played(sink, tmp_path / "s")
    played.put(range(50))
    played.end()
    assert sink.numbers[-1] == 49
    assert len(sink.numbers) < 50
    assert played.statistics["skipped"] + len(sink.numbers) == 50
    assert played.statistics["lost"] == 0


def test_a_display_goes_on_when_an_item_comes_while_it_draws(tmp_path: Path) -> None:
    class Drawing(ListSink):
        def __init__(self) -> None:
            super().__init__(durable=False)
            self.drawing, self.go_on = threading.Event(), threading.Event()

        def write(self, item: MaskedFrame) -> None:
            self.drawing.set()
            self.go_on.wait(60)
            super().write(item)

    sink = Drawing()
    played = Played(sink, tmp_path / "s")
    played.put([0])
    assert sink.drawing.wait(60)
    played.put([1, 2])
    sink.go_on.set()
    played.end()
    assert sink.numbers == [0, 2]
    assert played.messages == []
    assert (played.statistics["skipped"], played.statistics["delivered"]) == (1, 2)


def test_nothing_is_kept_for_a_reader_that_has_gone(tmp_path: Path) -> None:
    sink = ListSink(faults=[None, SinkClosed("its reader has gone.")])
    played = Played(sink, tmp_path / "s")
    played.put(range(20))
    played.end()
    assert sink.numbers == [0]
    assert played.messages == ["list: its reader has gone."]
    assert played.delivery.dead
    assert not (tmp_path / "s").exists()


def test_a_defect_of_a_sink_keeps_its_items_and_is_raised(tmp_path: Path) -> None:
    class Broken(ListSink):
        def write(self, item: MaskedFrame) -> None:
            raise ZeroDivisionError("oops")

    played = Played(Broken(), tmp_path / "s")
    played.put(range(4))
    with pytest.raises(ZeroDivisionError, match="oops"):
        played.end()
    assert len(list((tmp_path / "s").glob("item-*.zip"))) == 4


def test_a_sink_that_hangs_in_its_last_flush_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(ListSink):
        def flush(self) -> None:
            time.sleep(3600)

    monkeypatch.setattr("pspnet.stream.delivery._HANGING", 0.2)
    played = Played(Hanging(), tmp_path / "s")
    played.put(range(3))
    played.end()
    assert len(played.messages) == 1
    assert played.messages[0].startswith("list: gave up: no response for ")
    assert played.statistics.summary()["unfinished"] == 1


def test_a_sink_that_cannot_be_closed_is_told_and_counted(tmp_path: Path) -> None:
    class Unclosed(ListSink):
        def close(self) -> None:
            raise SinkError("list: two segments wait in spool.", temporary=True)

    played = Played(Unclosed(), tmp_path / "s")
    played.put(range(3))
    played.end()
    assert played.messages == ["list: two segments wait in spool."]
    assert played.statistics.summary()["unfinished"] == 1
    assert played.statistics["delivered"] == 3
