"""The choice for each size: by a trial when it is prepared, by the cache otherwise, and never at a frame's cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pspnet.errors import WeightsError
from pspnet.runtimes import automatic
from pspnet.runtimes.automatic import AutomaticRuntime
from pspnet.runtimes.choice import Choice, ChoiceCache

IMAGES = np.zeros((1, 40, 56, 3), np.uint8)


class Fake:
    """A runtime whose masks are full of one number."""

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value
        self.prepared: list[tuple[int, int, int]] = []

    def masks(self, images: np.ndarray) -> np.ndarray:
        return np.full(images.shape[:3], self.value, np.uint8)

    def logits(self, images: np.ndarray) -> torch.Tensor:
        return torch.full((images.shape[0], 2, *images.shape[1:3]), float(self.value))

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        self.prepared.append((height, width, batch))


class Bench:
    """An automatic runtime over fakes; `opened` tells which were opened, in order."""

    def __init__(self, cache: ChoiceCache | None = None, missing: str = "") -> None:
        self.opened: list[str] = []
        self.fakes = {name: Fake(name, value) for value, name in enumerate(("eager", "openvino", "compile"), start=1)}
        self.missing = missing
        openers = {name: self._opener(name) for name in ("openvino", "compile")}
        self.auto = AutomaticRuntime(self.fakes["eager"], openers, {"compile"}, cache, "model")

    def _opener(self, name: str) -> Callable[[], Fake]:
        def open_it() -> Fake:
            self.opened.append(name)
            if name == self.missing:
                raise WeightsError("was exported from other weights")
            return self.fakes[name]

        return open_it

    def answers(self, images: np.ndarray = IMAGES) -> str:
        """Which one answers these images."""
        value = int(self.auto.masks(images)[0, 0, 0])
        assert (self.auto.logits(images) == value).all()
        return next(name for name, fake in self.fakes.items() if fake.value == value)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The runtimes of each trial; the last of them is chosen."""
    seen: list[tuple[str, ...]] = []

    def trial(runtimes: dict[str, Fake], images: np.ndarray, failed: dict[str, str]) -> Choice:
        seen.append(tuple(runtimes))
        assert images.dtype == np.uint8
        return Choice(list(runtimes)[-1], failed=dict(failed))

    monkeypatch.setattr(automatic, "run_trial", trial)
    return seen


def cache(folder: Path) -> ChoiceCache:
    return ChoiceCache(folder, {"processor": "a"})


def test_without_preparation_eager_answers_and_nothing_is_opened(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    bench = Bench(cache(tmp_path))
    assert bench.answers() == "eager"
    assert bench.opened == []
    assert trials == []


def test_preparation_tries_all_and_keeps_the_choice(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    bench = Bench(cache(tmp_path))
    bench.auto.prepare(40, 56)
    assert trials == [("eager", "openvino", "compile")]
    assert bench.answers() == "compile"
    assert bench.answers(np.zeros((2, 40, 56, 3), np.uint8)) == "eager"
    assert bench.answers(np.zeros((1, 56, 40, 3), np.uint8)) == "eager"
    assert cache(tmp_path).find("model", (40, 56, 1)) == Choice("compile")
    assert (40, 56, 1) in bench.fakes["openvino"].prepared
    bench.auto.prepare(40, 56)
    assert len(trials) == 1


def test_an_earlier_trial_of_this_machine_counts(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    cache(tmp_path).keep("model", (40, 56, 1), Choice("openvino"))
    bench = Bench(cache(tmp_path))
    assert bench.answers() == "openvino"
    assert bench.opened == ["openvino"]
    prepared = Bench(cache(tmp_path))
    prepared.auto.prepare(40, 56)
    assert prepared.answers() == "openvino"
    assert prepared.auto.choices == {(40, 56, 1): Choice("openvino")}
    assert prepared.fakes["openvino"].prepared == [(40, 56, 1)]
    assert trials == []


def test_a_slow_choice_waits_for_preparation(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    cache(tmp_path).keep("model", (40, 56, 1), Choice("compile"))
    bench = Bench(cache(tmp_path))
    assert bench.answers() == "eager"
    assert bench.opened == []
    bench.auto.prepare(40, 56)
    assert bench.answers() == "compile"
    assert trials == []


def test_one_that_cannot_be_opened_is_noted_and_asked_once(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    bench = Bench(cache(tmp_path), missing="compile")
    bench.auto.prepare(40, 56)
    bench.auto.prepare(48, 64)
    assert trials == [("eager", "openvino")] * 2
    assert bench.opened.count("compile") == 1
    assert bench.auto.choices[40, 56, 1].failed == {"compile": "WeightsError: was exported from other weights"}


def test_a_remembered_choice_that_is_gone_is_tried_anew(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    for gone in ("openvino", "no runtime at all"):
        cache(tmp_path).keep("model", (40, 56, 1), Choice(gone))
        bench = Bench(cache(tmp_path), missing="openvino")
        assert bench.answers() == "eager"
        bench.auto.prepare(40, 56)
        assert bench.answers() == "compile"
    assert trials == [("eager", "compile")] * 2


def test_losers_are_let_go(trials: list[tuple[str, ...]]) -> None:
    bench = Bench()
    bench.auto.prepare(40, 56)
    assert set(bench.auto._open) == {"eager", "compile"}
    assert bench.opened == ["openvino", "compile"]


def test_one_that_cannot_be_prepared_takes_no_part(
    trials: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    def fail(*_: int) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(bench.fakes["compile"], "prepare", fail)
    bench.auto.prepare(40, 56)
    assert trials == [("eager", "openvino")]
    monkeypatch.setattr(bench.fakes["eager"], "prepare", fail)
    with pytest.raises(MemoryError, match="full"):
        bench.auto.prepare(48, 64)
