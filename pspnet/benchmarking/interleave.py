"""Interleaved timing of several cases, so that a change of the machine's speed affects all of them.

A ratio of two cases is taken within each round, and its median over the rounds is reported.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Hashable, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile of a set of values."""

    lower: float
    median: float
    upper: float


class OwnTime(float):
    """Seconds that a case measured itself, such as in another process; they replace the caller's measurement."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each round, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def quartiles(self) -> Quartiles:
        """Lower quartile, median and upper quartile, in seconds."""
        return quartiles(self.seconds)

    @property
    def median(self) -> float:
        """Median in seconds."""
        return self.quartiles.median

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile in seconds."""
        return self.quartiles.lower, self.quartiles.upper

    def record(self) -> dict[str, Any]:
        """The entry for a JSON file: quartiles and every round, in milliseconds."""
        rounds = [round(1000 * value, 4) for value in self.seconds]
        lower, median, upper = (round(1000 * value, 4) for value in self.quartiles)
        return {"median_ms": median, "quartiles_ms": [lower, upper], "rounds_ms": rounds}


def measure(
    cases: Mapping[Key, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    seed: int = 0,
    calls: int = 1,
    pause: float = 0.0,
    settle: int = 0,
) -> dict[Key, Timing]:
    """Time all cases in every round, in an order that changes from round to round.

    Args:
        cases: the timed functions, by name or another key. A case must have finished its work when it returns: one
            that uses a GPU synchronises with it. If it returns an OwnTime, that is its time.
        rounds: how often each case is timed, 1 or more.
        warmup: untimed calls of each case before the first round.
        seed: of the orders.
        calls: calls of a case in one round, whose mean is the round's time. For cases of a few microseconds.
        pause: seconds of rest before each case. Idle threads of libraries spin for a while on cores that the next case
            needs; 0.1 is enough for cases of different libraries.
        settle: untimed calls of a case before it is timed, in every round. With one, the processor's caches hold the
            case's own data, as in a stream of images, instead of the previous case's.

    Returns:
        The times of each case, in the order of `cases`.
    """
    assert rounds >= 1
    assert calls >= 1
    for case in cases.values():
        for _ in range(warmup):
            case()
    order, shuffle = list(cases), random.Random(seed).shuffle
    seconds: dict[Key, list[float]] = {name: [] for name in cases}
    with _frozen_heap():
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                time.sleep(pause)
                for _ in range(settle):
                    cases[name]()
                seconds[name].append(_time(cases[name], calls))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude existing objects from garbage collection, which runs before every timing and would take 0.1 s each."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _time(case: Callable[[], object], calls: int) -> float:
    """Seconds of a call. Garbage is collected before it, not during it, as in `timeit`."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        own = 0.0
        start = time.perf_counter()
        for _ in range(calls):
            result = case()
            if isinstance(result, OwnTime):
                own += result
        return (own or time.perf_counter() - start) / calls
    finally:
        if was_enabled:
            gc.enable()


def ratio_quartiles(a: Timing, b: Timing) -> Quartiles:
    """Quartiles over the rounds of the time ratio a / b; both must come from one call of `measure`."""
    assert len(a.seconds) == len(b.seconds)
    return quartiles([first / second for first, second in zip(a.seconds, b.seconds)])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles, interpolated between the values; a single value is repeated."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))
