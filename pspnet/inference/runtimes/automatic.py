"""The runtime that picks another one, for each size of images.

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
from pspnet.inference.runtimes.trials import REFERENCE, Choice, ChoiceCache, in_words, run_trial, trial_images

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
        self._lacking: set[str] = set()  # of those that failed: what this machine lacks it will lack at the next start
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
        """What answers images of a size."""
        size = (height, width, batch)
        return self._chosen.get(size) or self._remembered(size)

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Choose for this size, by an earlier trial or by one now, and prepare the chosen runtime."""
        size = (height, width, batch)
        with self._lock:
            choice = self._choose(size)
            chosen = self._opened(choice.runtime) or self.eager
            try:
                chosen.prepare(height, width, batch)
            except Exception as error:
                if chosen is self.eager:
                    raise
                self._pass_by(choice.runtime, error)
                failed = {**choice.failed, choice.runtime: in_words(error)}
                choice, chosen = replace(choice, runtime=REFERENCE, failed=failed), self.eager
                chosen.prepare(height, width, batch)
            self.choices[size], self._chosen[size] = choice, chosen
            # The losers' memory is worth more than another trial's start.
            used = [self.eager, *self._chosen.values()]
            self._open = {name: runtime for name, runtime in self._open.items() if runtime in used}

    def _choose(self, size: _Size) -> Choice:
        """By an earlier trial or by one now. One process of a machine at a time: trials would disturb each other."""
        with contextlib.nullcontext() if self._cache is None else self._cache.alone():
            choice = self._find(size)
            if choice is None or not self._opened(choice.runtime):
                choice = self._try(size)
                # Another failure may be gone at the next start, or be one of these weights alone: that trial is not
                # to decide for ever, nor for other models of this kind.
                if self._cache is not None and set(choice.failed) <= self._lacking:
                    self._cache.keep(self._model, size, choice)
        return choice

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
        self.eager.prepare(height, width, batch)
        runtimes = {REFERENCE: self.eager}
        for name in self._openers:
            runtime = self._opened(name)
            if runtime is not None:
                try:
                    runtime.prepare(height, width, batch)
                    runtimes[name] = runtime
                except Exception as error:
                    self._pass_by(name, error)
        try:
            choice = run_trial(runtimes, trial_images(height, width, batch), self._failed)
        except Exception as error:  # eager's: what the others hold may be what it wants for
            others = set(runtimes) - {REFERENCE}
            if not others:
                raise
            for name in others:
                self._pass_by(name, error)
            return Choice(REFERENCE, failed=dict(self._failed))
        for name in set(choice.failed) - set(self._failed):
            self._failed[name] = choice.failed[name]
            self._open.pop(name, None)
        return choice

    def _opened(self, name: str) -> Runtime | None:
        """A runtime that is open or can be opened now, else None."""
        if name not in self._open and name in self._openers and name not in self._failed:
            try:
                self._open[name] = self._openers[name]()
            except Exception as error:  # a choice must not fail because one of many cannot run
                self._pass_by(name, error)
        return self._open.get(name)

    def _pass_by(self, name: str, error: Exception) -> None:
        """Note why a runtime takes no part, and let go of it."""
        self._failed[name] = in_words(error)
        self._open.pop(name, None)
        is_lack = isinstance(error, RuntimeMissingError) and not isinstance(error, BrokenGraphError)
        if is_lack and not is_out_of_memory(error):
            self._lacking.add(name)
