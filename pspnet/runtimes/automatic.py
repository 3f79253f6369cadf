"""The runtime that picks another one, for each size of images.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Tuple

import numpy as np
from torch import Tensor

from pspnet.runtimes.base import AUTO, Runtime
from pspnet.runtimes.choice import REFERENCE, Choice, ChoiceCache, run_trial, trial_images

# (H, W, N). Evaluated at run time, hence in words that Python 3.8 knows.
_Size = Tuple[int, int, int]

_REMEMBERED = 1024


class AutomaticRuntime:
    """Answers with eager, or with what a trial on this machine found to be faster for a size.

    Trials run in `prepare` alone. A size that was not prepared gets what an earlier trial found, else eager.

    Args:
        eager: the reference, ready to run.
        openers: what opens the others, by name; one that raises takes no part.
        slow: names of those whose opening or first pass takes too long for a frame that waits.
        cache: remembers choices; None to try again each time.
        model: the cache's word for this kind of model.
    """

    name = AUTO

    def __init__(
        self,
        eager: Runtime,
        openers: Mapping[str, Callable[[], Runtime]],
        slow: Collection[str] = (),
        cache: ChoiceCache | None = None,
        model: str = "",
    ) -> None:
        self.eager = eager
        self.choices: dict[_Size, Choice] = {}
        """What the trials of this or an earlier process found, by size (H, W, N)."""
        self._openers, self._slow, self._cache, self._model = dict(openers), frozenset(slow), cache, model
        self._open: dict[str, Runtime] = {REFERENCE: eager}
        self._failed: dict[str, str] = {}
        self._chosen: dict[_Size, Runtime] = {}
        self._lock = threading.RLock()

    def masks(self, images: np.ndarray) -> np.ndarray:
        """See Runtime."""
        count, height, width = images.shape[:3]
        return self.runtime_for(height, width, count).masks(images)

    def logits(self, images: np.ndarray) -> Tensor:
        """See Runtime."""
        count, height, width = images.shape[:3]
        return self.runtime_for(height, width, count).logits(images)

    def runtime_for(self, height: int, width: int, batch: int = 1) -> Runtime:
        """What answers images of a size."""
        size = (height, width, batch)
        return self._chosen.get(size) or self._remembered(size)

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Choose for this size, by an earlier trial or by one now, and prepare the chosen runtime."""
        size = (height, width, batch)
        with self._lock:
            choice = self._find(size)
            if choice is None or not self._opened(choice.runtime):
                choice = self._try(size)
                if self._cache is not None:
                    self._cache.keep(self._model, size, choice)
            chosen = self._opened(choice.runtime) or self.eager
            chosen.prepare(height, width, batch)
            self.choices[size], self._chosen[size] = choice, chosen
            # The losers' memory is worth more than another trial's start.
            used = [self.eager, *self._chosen.values()]
            self._open = {name: runtime for name, runtime in self._open.items() if runtime in used}

    def _find(self, size: _Size) -> Choice | None:
        choice = self.choices.get(size)
        if choice is None and self._cache is not None:
            choice = self._cache.find(self._model, size)
        return choice

    def _remembered(self, size: _Size) -> Runtime:
        """For a size that was not prepared."""
        with self._lock:
            choice = self._find(size)
            chosen: Runtime | None = None
            if choice is not None and choice.runtime not in self._slow:
                chosen = self._opened(choice.runtime)
            if len(self._chosen) < _REMEMBERED:
                self._chosen[size] = chosen or self.eager
            return chosen or self.eager

    def _try(self, size: _Size) -> Choice:
        height, width, batch = size
        runtimes = {}
        for name in [REFERENCE, *self._openers]:
            runtime = self._opened(name)
            if runtime is not None:
                try:
                    runtime.prepare(height, width, batch)
                    runtimes[name] = runtime
                except Exception as error:
                    if name == REFERENCE:
                        raise
                    self._failed[name] = _reason(error)
        return run_trial(runtimes, trial_images(height, width, batch), self._failed)

    def _opened(self, name: str) -> Runtime | None:
        """A runtime that is open or can be opened now, else None."""
        if name not in self._open and name in self._openers and name not in self._failed:
            try:
                self._open[name] = self._openers[name]()
            except Exception as error:  # a choice must not fail because one of many cannot run
                self._failed[name] = _reason(error)
        return self._open.get(name)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
