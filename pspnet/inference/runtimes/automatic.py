"""Runtime that selects the fastest of several runtimes for each image size.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Tuple

import numpy as np
from torch import Tensor

from pspnet.errors import is_out_of_memory
from pspnet.inference.runtimes.base import AUTO, BrokenGraphError, Runtime, RuntimeMissingError
from pspnet.inference.runtimes.trials import REFERENCE, Choice, ChoiceCache, error_text, run_trial, trial_images

# (H, W, N). Evaluated at run time, so in the syntax of Python 3.8.
_Size = Tuple[int, int, int]

_REMEMBERED = 1024


class AutomaticRuntime:
    """Runs eager, or the runtime that a trial on this machine found to be faster for the image size.

    Trials run only in `prepare`. A size that was not prepared gets the choice of an earlier trial, else eager.

    Args:
        eager: the reference, ready to run.
        openers: functions that open the other candidates, by name; one that raises is skipped.
        slow: names of candidates that open or warm up too slowly to start while a frame waits.
        cache: persistent choices; None to run a trial each time.
        model: cache key of the architecture.
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
        """Results of the trials of this or an earlier process, by size (H, W, N)."""
        self._openers, self._slow, self._cache, self._model = dict(openers), frozenset(slow), cache, model
        self._open: dict[str, Runtime] = {REFERENCE: eager}
        self._failed: dict[str, str] = {}
        self._lacking: set[str] = set()  # failed because this machine lacks something, so also at the next start
        self._chosen: dict[_Size, Runtime] = {}
        self._lock = threading.RLock()

    def masks(self, images: np.ndarray) -> np.ndarray:
        """See Runtime."""
        count, height, width = images.shape[:3]
        return self.runtime_for(height, width, count).masks(images)

    def logits(self, images: np.ndarray) -> Tensor:
        """See Runtime."""
        count, height, width = images.shape[:3]
        runtime = self.runtime_for(height, width, count)
        return (self.eager if runtime.name in self._slow else runtime).logits(images)

    def runtime_for(self, height: int, width: int, batch: int = 1) -> Runtime:
        """The runtime for images of a size."""
        size = (height, width, batch)
        return self._chosen.get(size) or self._choose_unprepared(size)

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Select a runtime for this size, by an earlier or a new trial, and prepare it."""
        size = (height, width, batch)
        with self._lock:
            choice = self._choose(size)
            chosen = self._opened(choice.runtime) or self.eager
            try:
                chosen.prepare(height, width, batch)
            except Exception as error:
                if chosen is self.eager:
                    raise
                self._exclude(choice.runtime, error)
                failed = {**choice.failed, choice.runtime: error_text(error)}
                choice, chosen = replace(choice, runtime=REFERENCE, failed=failed), self.eager
                chosen.prepare(height, width, batch)
            self.choices[size], self._chosen[size] = choice, chosen
            # Close the losers: their memory is worth more than a faster start of another trial.
            used = [self.eager, *self._chosen.values()]
            self._open = {name: runtime for name, runtime in self._open.items() if runtime in used}

    def _choose(self, size: _Size) -> Choice:
        """Choose by an earlier or a new trial. One process per machine at a time, since trials disturb each other."""
        with contextlib.nullcontext() if self._cache is None else self._cache.alone():
            choice = self._find(size)
            if choice is None or not self._opened(choice.runtime):
                choice = self._run_trial(size)
                # Other failures may be temporary or specific to these weights, so such a trial is not cached for
                # later starts and for other models of this architecture.
                if self._cache is not None and set(choice.failed) <= self._lacking:
                    self._cache.keep(self._model, size, choice)
        return choice

    def _find(self, size: _Size) -> Choice | None:
        choice = self.choices.get(size)
        if choice is None and self._cache is not None:
            choice = self._cache.find(self._model, size)
        return choice

    def _choose_unprepared(self, size: _Size) -> Runtime:
        """The runtime for a size that was not prepared; no trial runs."""
        with self._lock:
            choice = self._find(size)
            chosen: Runtime | None = None
            if choice is not None and choice.runtime not in self._slow:
                chosen = self._opened(choice.runtime)
            if len(self._chosen) < _REMEMBERED:
                self._chosen[size] = chosen or self.eager
            return chosen or self.eager

    def _run_trial(self, size: _Size) -> Choice:
        height, width, batch = size
        self.eager.prepare(height, width, batch)
        runtimes = {REFERENCE: self.eager}
        for name in self._openers:
            runtime = self._opened(name)
            if runtime is not None:
                try:
                    runtime.prepare(height, width, batch)
                    runtimes[name] = runtime
                except Exception as error:
                    self._exclude(name, error)
        try:
            choice = run_trial(runtimes, trial_images(height, width, batch), self._failed)
        except Exception as error:  # of eager: the others may hold the memory that it needs
            others = set(runtimes) - {REFERENCE}
            if not others:
                raise
            for name in others:
                self._exclude(name, error)
            return Choice(REFERENCE, failed=dict(self._failed))
        for name in set(choice.failed) - set(self._failed):
            self._failed[name] = choice.failed[name]
            self._open.pop(name, None)
        return choice

    def _opened(self, name: str) -> Runtime | None:
        """The runtime, opened now if necessary; None if it cannot be opened."""
        if name not in self._open and name in self._openers and name not in self._failed:
            try:
                self._open[name] = self._openers[name]()
            except Exception as error:  # one failing candidate must not fail the selection
                self._exclude(name, error)
        return self._open.get(name)

    def _exclude(self, name: str, error: Exception) -> None:
        """Record why a runtime is excluded, and close it."""
        self._failed[name] = error_text(error)
        self._open.pop(name, None)
        is_lack = isinstance(error, RuntimeMissingError) and not isinstance(error, BrokenGraphError)
        if is_lack and not is_out_of_memory(error):
            self._lacking.add(name)
