"""Times of several cases that take turns, so that a change of the machine's speed meets all of them.

A ratio of two cases is taken within each round, and the median over the rounds counts: a slow minute slows both.
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
    """The middle half of a set of values and its middle."""

    lower: float
    median: float
    upper: float


class OwnTime(float):
    """Seconds that a case measured itself, in another process for example; they count instead of the caller's clock."""


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
        """What a JSON file keeps of it: quartiles and every round, in milliseconds."""
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
        cases: what is timed, by its name or another key. A case must have finished its work when it returns: one that
            uses a GPU synchronises with it. One that returns an OwnTime is taken at its word.
        rounds: how often each case is timed, 1 or more.
        warmup: calls of each case before the first round, not timed.
        seed: of the orders.
        calls: calls of a case in one round; the mean of them is the round's time. For cases of a few microseconds.
        pause: seconds of rest before each case. Libraries let their idle threads spin for a while, on cores that the
            next case needs; a tenth of a second is enough where cases are of different libraries.
        settle: calls of a case before its time is taken, in every round. With one, the processor's caches hold what the
            case itself left there, as in a stream of images, and not what the case before it did.

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
    with _little_to_collect():
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                time.sleep(pause)
                for _ in range(settle):
                    cases[name]()
                seconds[name].append(_time(cases[name], calls))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@contextlib.contextmanager
def _little_to_collect() -> Iterator[None]:
    """What is there now is looked at by no collection inside. There is one before every timing, and each would take a
    tenth of a second for the imported packages alone."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _time(case: Callable[[], object], calls: int) -> float:
    """Seconds of a call. Garbage is collected before and not in between, as `timeit` does."""
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
    """How many times as long a takes as b: the ratios' quartiles over the rounds; both must be of one `measure`."""
    assert len(a.seconds) == len(b.seconds)
    return quartiles([first / second for first, second in zip(a.seconds, b.seconds)])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles, interpolated between the values; of a single value it is that value three times."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))
