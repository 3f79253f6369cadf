"""Frame queue: the latest frame only, or every frame."""

from __future__ import annotations

import threading

from pspnet.stream.frame_queue import FrameQueue
from tests.stream.fakes import frame


def test_latest_keeps_the_newest_and_counts_the_others() -> None:
    late: list[int] = []
    queue = FrameQueue(depth=4, latest=True, dropped=lambda: late.append(1))
    for index in range(5):
        assert queue.put(frame(index))
    taken = queue.get()
    assert taken is not None
    assert taken.index == 4
    assert len(late) == 4


def test_newest_returns_a_newer_frame_only_with_latest() -> None:
    late: list[int] = []
    latest, every = (FrameQueue(4, which, lambda: late.append(1)) for which in (True, False))
    latest.put(frame(3))
    every.put(frame(3))
    assert latest.newest(frame(1)).index == 3
    assert latest.newest(frame(1)).index == 1
    assert every.newest(frame(1)).index == 1
    assert len(late) == 1


def test_put_blocks_while_the_queue_is_full_and_loses_nothing() -> None:
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


def test_close_keeps_queued_frames_and_wakes_both_threads() -> None:
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
