"""Interleaved cases, ratios per round, and times that a case measures itself."""

from __future__ import annotations

import gc
import statistics
import time

import pytest

from pspnet.benchmarking.interleave import OwnTime, Timing, measure, quartiles, ratio_quartiles


@pytest.mark.slow
def test_every_case_runs_once_in_every_round_in_changing_order() -> None:
    seen: list[str] = []
    cases = {name: lambda name=name: seen.append(name) for name in "abc"}
    found = measure(cases, rounds=20, warmup=2, seed=3)
    assert list(found) == ["a", "b", "c"]
    assert [len(timing.seconds) for timing in found.values()] == [20, 20, 20]
    assert seen[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [tuple(seen[start : start + 3]) for start in range(6, len(seen), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3
    again: list[str] = []
    measure({name: lambda name=name: again.append(name) for name in "abc"}, rounds=20, warmup=2, seed=3)
    assert again == seen


@pytest.mark.slow
def test_the_clock_measures_a_call() -> None:
    found = measure({"sleep": lambda: time.sleep(0.02)}, rounds=3, warmup=0, calls=2)["sleep"]
    assert all(value >= 0.0195 for value in found.seconds)
    assert found.median == statistics.median(found.seconds)


@pytest.mark.slow
def test_a_case_may_measure_its_own_time() -> None:
    values = iter([9.0, 3.0, 5.0, 7.0, 1.0])
    found = measure({"other process": lambda: OwnTime(next(values))}, rounds=2, warmup=1, calls=2)["other process"]
    assert found.seconds == (4.0, 4.0)


@pytest.mark.slow
def test_no_garbage_collection_while_timing() -> None:
    states: list[tuple[bool, bool]] = []
    measure({"case": lambda: states.append((gc.isenabled(), gc.get_freeze_count() > 0))}, rounds=2, warmup=0)
    assert states == [(False, True), (False, True)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        measure({"case": fail}, rounds=1, warmup=0)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_ratio_is_the_median_over_the_rounds_not_of_the_medians() -> None:
    slow, fast = Timing((2.0, 40.0, 6.0)), Timing((1.0, 10.0, 6.0))  # the machine was busy in the second round
    assert ratio_quartiles(slow, fast) == (1.5, 2.0, 3.0)
    assert slow.median / fast.median == 1.0


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    timing = Timing((0.004, 0.001, 0.003, 0.002, 0.005))
    assert timing.spread == (0.002, 0.004)
    assert timing.record() == {"median_ms": 3.0, "quartiles_ms": [2.0, 4.0], "rounds_ms": [4.0, 1.0, 3.0, 2.0, 5.0]}
