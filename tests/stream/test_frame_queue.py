"""The latest frame alone, or every frame in a short queue."""

from __future__ import annotations

import threading

from pspnet.stream.frame_queue import FrameQueue
from tests.stream.players import frame


def test_latest_keeps_the_newest_and_counts_the_others() -> None:
    late: list[int] = []
    queue = FrameQueue(depth=4, latest=True, dropped=lambda: late.append(1))
    for index in range(5):
        assert queue.put(frame(index))
    taken = queue.get()
    assert taken is not None
    assert taken.index == 4
    assert len(late) == 4


def test_newest_replaces_a_frame_that_was_held_up_only_where_latest_counts() -> None:
    late: list[int] = []
    latest, every = (FrameQueue(4, which, lambda: late.append(1)) for which in (True, False))
    latest.put(frame(3))
    every.put(frame(3))
    assert latest.newest(frame(1)).index == 3
    assert latest.newest(frame(1)).index == 1
    assert every.newest(frame(1)).index == 1
    assert len(late) == 1


def test_all_waits_for_room_and_loses_nothing() -> None:
    queue = FrameQueue(depth=2, latest=False, dropped=lambda: None)
    sender = threading.Thread(target=lambda: [queue.put(frame(index)) for index in range(50)])
    sender.start()
    numbers = []
    while len(numbers) < 50:
        taken = queue.get()
        assert taken is not None
        numbers.append(taken.index)
        assert len(queue._frames) <= 2
    sender.join(10)
    assert numbers == list(range(50))


def test_close_hands_out_what_was_taken_and_wakes_both_sides() -> None:
    queue = FrameQueue(depth=1, latest=False, dropped=lambda: None)
    queue.put(frame(0))
    results: list[bool] = []
    sender = threading.Thread(target=lambda: results.append(queue.put(frame(1))))
    sender.start()
    queue.close()
    sender.join(10)
    assert results == [False]
    taken = queue.get()
    assert taken is not None
    assert taken.index == 0
    assert queue.get() is None
