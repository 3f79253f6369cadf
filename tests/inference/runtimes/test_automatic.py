"""Runtime selection per size: by a trial in prepare, otherwise by the cache, never while a frame waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pspnet.errors import WeightsError
from pspnet.inference.runtimes import automatic
from pspnet.inference.runtimes.automatic import AutomaticRuntime
from pspnet.inference.runtimes.base import BrokenGraphError, RuntimeMissingError
from pspnet.inference.runtimes.trials import Choice, ChoiceCache

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
    """An automatic runtime over fakes; `opened` lists those opened, in order."""

    def __init__(
        self, cache: ChoiceCache | None = None, missing: str = "", error: type[Exception] = WeightsError
    ) -> None:
        self.opened: list[str] = []
        self.fakes = {name: Fake(name, value) for value, name in enumerate(("eager", "openvino", "compile"), start=1)}
        self.missing, self.error = missing, error
        openers = {name: self._opener(name) for name in ("openvino", "compile")}
        self.auto = AutomaticRuntime(self.fakes["eager"], openers, {"compile"}, cache, "model")

    def _opener(self, name: str) -> Callable[[], Fake]:
        def open_it() -> Fake:
            self.opened.append(name)
            if name == self.missing:
                raise self.error("was exported from other weights")
            return self.fakes[name]

        return open_it

    def answers(self, images: np.ndarray = IMAGES) -> str:
        """The runtime that runs these images."""
        value = int(self.auto.masks(images)[0, 0, 0])
        name = next(name for name, fake in self.fakes.items() if fake.value == value)
        # `compile` prepares masks only: eager gives logits immediately.
        assert (self.auto.logits(images) == (1 if name == "compile" else value)).all()
        return name


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The runtimes of each trial; the last one is chosen."""
    seen: list[tuple[str, ...]] = []

    def trial(runtimes: dict[str, Fake], images: np.ndarray, failed: dict[str, str]) -> Choice:
        seen.append(tuple(runtimes))
        assert images.dtype == np.uint8
        return Choice(list(runtimes)[-1], failed=dict(failed))

    monkeypatch.setattr(automatic, "run_trial", trial)
    return seen


def cache(folder: Path) -> ChoiceCache:
    return ChoiceCache(folder, {"processor": "a"})


def test_without_preparation_eager_runs_and_nothing_is_opened(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    bench = Bench(cache(tmp_path))
    assert bench.answers() == "eager"
    assert bench.opened == []
    assert trials == []


def test_preparation_runs_a_trial_and_caches_the_choice(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
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


def test_an_earlier_trial_of_this_machine_is_reused(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
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


def test_a_runtime_that_cannot_be_opened_is_tried_once(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    bench = Bench(cache(tmp_path), missing="compile")
    bench.auto.prepare(40, 56)
    bench.auto.prepare(48, 64)
    assert trials == [("eager", "openvino")] * 2
    assert bench.opened.count("compile") == 1
    assert bench.auto.choices[40, 56, 1].failed == {"compile": "WeightsError: was exported from other weights"}


def test_a_cached_choice_that_is_unavailable_starts_a_new_trial(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    for gone in ("openvino", "no runtime at all"):
        cache(tmp_path).keep("model", (40, 56, 1), Choice(gone))
        bench = Bench(cache(tmp_path), missing="openvino")
        assert bench.answers() == "eager"
        bench.auto.prepare(40, 56)
        assert bench.answers() == "compile"
    assert trials == [("eager", "compile")] * 2


def test_losers_are_closed(trials: list[tuple[str, ...]]) -> None:
    bench = Bench()
    bench.auto.prepare(40, 56)
    assert set(bench.auto._open) == {"eager", "compile"}
    assert bench.opened == ["openvino", "compile"]


def test_a_runtime_that_cannot_be_prepared_is_excluded(
    trials: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    def fail(*_: int) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(bench.fakes["compile"], "prepare", fail)
    bench.auto.prepare(40, 56)
    assert trials == [("eager", "openvino")]
    assert bench.auto.choices[40, 56, 1].failed == {"compile": "MemoryError: full"}
    monkeypatch.setattr(bench.fakes["eager"], "prepare", fail)
    with pytest.raises(MemoryError, match="full"):
        bench.auto.prepare(48, 64)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (RuntimeMissingError, True),  # of this machine, and so at each start
        (BrokenGraphError, False),  # of this model
        (WeightsError, False),
        (MemoryError, False),
    ],
)
def test_a_temporary_failure_is_not_cached(
    trials: list[tuple[str, ...]], tmp_path: Path, error: type[Exception], kept: bool
) -> None:
    bench = Bench(cache(tmp_path), missing="openvino", error=error)
    bench.auto.prepare(40, 56)
    bench.auto.prepare(40, 56)
    assert trials == [("eager", "compile")]
    assert (cache(tmp_path).find("model", (40, 56, 1)) is not None) is kept
    again = Bench(cache(tmp_path))
    again.auto.prepare(40, 56)
    assert len(trials) == (1 if kept else 2)


def test_a_cached_choice_that_cannot_be_prepared_falls_back_to_eager(
    trials: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(tmp_path).keep("model", (40, 56, 1), Choice("openvino"))
    bench = Bench(cache(tmp_path))

    def fail(*_: int) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(bench.fakes["openvino"], "prepare", fail)
    bench.auto.prepare(40, 56)
    assert bench.answers() == "eager"
    assert bench.fakes["eager"].prepared == [(40, 56, 1)]
    assert bench.auto.choices[40, 56, 1] == Choice("eager", failed={"openvino": "MemoryError: full"})
    assert set(bench.auto._open) == {"eager"}
    assert trials == []


def test_eager_alone_is_kept_if_it_fails_next_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bench.fakes["eager"], "masks", lambda images: 1 / 0)
    bench.auto.prepare(40, 56)
    choice = bench.auto.choices[40, 56, 1]
    assert choice.runtime == "eager"
    assert set(choice.failed) == {"openvino", "compile"}
    assert bench.auto.runtime_for(40, 56) is bench.fakes["eager"]


def test_a_runtime_that_fails_in_the_trial_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Bench(cache(tmp_path))
    for fake in bench.fakes.values():
        fake.value = 1
    monkeypatch.setattr(bench.fakes["openvino"], "masks", lambda images: 1 / 0)
    bench.auto.prepare(40, 56)
    assert set(bench.auto.choices[40, 56, 1].failed) == {"openvino"}
    assert "openvino" not in bench.auto._open
    assert cache(tmp_path).find("model", (40, 56, 1)) is None


def test_processes_that_start_together_run_one_trial(trials: list[tuple[str, ...]], tmp_path: Path) -> None:
    benches = [Bench(cache(tmp_path)) for _ in range(2)]  # each with its own lock file, like processes
    first, second = (threading.Thread(target=bench.auto.prepare, args=(40, 56)) for bench in benches)
    entered, go = threading.Event(), threading.Event()

    def wait(*_: int) -> None:
        entered.set()
        assert go.wait(60)

    benches[0].fakes["eager"].prepare = wait  # type: ignore[method-assign]
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert benches[1].opened == []
    go.set()
    for thread in (first, second):
        thread.join(60)
    assert len(trials) == 1
    assert [bench.answers() for bench in benches] == ["compile", "compile"]
