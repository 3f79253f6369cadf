"""Trials of runtimes with a fake clock, and the cache of their choices."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pspnet.inference.runtimes.trials import Choice, ChoiceCache, describe_machine, run_trial, trial_images
from pspnet.system.cpu import available_cores, processor_name
from pspnet.system.locations import cache_folder

IMAGES = trial_images(40, 56, 2)
MACHINE = {"processor": "a", "cores": 2, "threads": 2}


class Clock:
    """A clock that only the fakes advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """Returns the brightest channel, with a fraction of wrong pixels; each pass advances the clock.

    `error` is raised `after` so many passes.
    """

    def __init__(
        self, clock: Clock, seconds: float, wrong: float = 0.0, error: Exception | None = None, after: int = 0
    ) -> None:
        self.clock, self.seconds, self.wrong, self.error, self.after = clock, seconds, wrong, error, after
        self.passes = 0

    name = "fake"

    def masks(self, images: np.ndarray) -> np.ndarray:
        if self.error is not None and self.passes >= self.after:
            raise self.error
        self.passes += 1
        self.clock.now += self.seconds
        masks = images.argmax(axis=3).astype(np.uint8)
        flat = masks.reshape(-1)
        flat[: round(self.wrong * flat.size)] += 7
        return masks

    def logits(self, images: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        raise NotImplementedError


def trial(**runtimes: dict[str, Any]) -> tuple[Choice, dict[str, Fake]]:
    clock = Clock()
    fakes = {name: Fake(clock, **settings) for name, settings in runtimes.items()}
    return run_trial(fakes, IMAGES, clock=clock), fakes


def test_the_fastest_is_chosen() -> None:
    choice, fakes = trial(eager={"seconds": 0.04}, openvino={"seconds": 0.02}, onnxruntime={"seconds": 0.03})
    assert choice.runtime == "openvino"
    assert choice.milliseconds == {"eager": 40.0, "openvino": 20.0, "onnxruntime": 30.0}
    assert choice.agreement == {"eager": 1.0, "openvino": 1.0, "onnxruntime": 1.0}
    assert {fake.passes for fake in fakes.values()} == {1 + 2 * 16}  # one to compare, 16 rounds: 2.88 s


def test_no_round_starts_after_three_seconds() -> None:
    _, fakes = trial(eager={"seconds": 0.14}, openvino={"seconds": 0.12})
    assert {fake.passes for fake in fakes.values()} == {1 + 2 * 6}  # 0.52 s per round; the sixth starts at 2.6 s


def test_a_slow_trial_ends_after_five_rounds() -> None:
    _, fakes = trial(eager={"seconds": 2.0}, openvino={"seconds": 1.0})
    assert fakes["openvino"].passes == 1 + 2 * 5


def test_a_small_gain_is_ignored() -> None:
    assert trial(eager={"seconds": 0.1}, openvino={"seconds": 0.097})[0].runtime == "eager"
    assert trial(eager={"seconds": 0.1}, openvino={"seconds": 0.094})[0].runtime == "openvino"


def test_other_masks_are_not_chosen_however_fast() -> None:
    choice, fakes = trial(eager={"seconds": 0.1}, openvino={"seconds": 0.01, "wrong": 0.02})
    assert choice.runtime == "eager"
    assert choice.agreement["openvino"] == pytest.approx(0.98, abs=1e-3)
    assert fakes["openvino"].passes == 1
    assert trial(eager={"seconds": 0.1}, openvino={"seconds": 0.01, "wrong": 0.005})[0].runtime == "openvino"


def test_a_failing_runtime_is_excluded() -> None:
    choice, _ = trial(eager={"seconds": 0.1}, openvino={"seconds": 0.01, "error": RuntimeError("no memory")})
    assert choice.runtime == "eager"
    assert choice.failed == {"openvino": "RuntimeError: no memory"}


def test_a_runtime_that_fails_while_timed_is_excluded() -> None:
    failing = {"seconds": 0.01, "error": RuntimeError("no memory"), "after": 4}
    choice, fakes = trial(eager={"seconds": 0.1}, openvino=failing, onnxruntime={"seconds": 0.05})
    assert choice.runtime == "onnxruntime"
    assert choice.failed == {"openvino": "RuntimeError: no memory"}
    assert set(choice.milliseconds) == {"eager", "onnxruntime"}
    assert fakes["openvino"].passes == 4
    with pytest.raises(RuntimeError, match="no memory"):
        trial(eager={**failing, "seconds": 0.1}, openvino={"seconds": 0.05})


def test_eager_alone_is_timed_once() -> None:
    assert trial(eager={"seconds": 0.1})[1]["eager"].passes <= 3


def test_trial_images_are_deterministic() -> None:
    assert IMAGES.shape == (2, 40, 56, 3)
    assert IMAGES.dtype == np.uint8
    np.testing.assert_array_equal(IMAGES, trial_images(40, 56, 2))
    assert (IMAGES[0] != IMAGES[1]).any()
    assert len(np.unique(IMAGES.argmax(axis=3))) == 3


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_choice_is_found_again(tmp_path: Path) -> None:
    choice = Choice("openvino", {"eager": 50.0, "openvino": 20.0}, {"openvino": 1.0}, {"compile": "no compiler"})
    cache = ChoiceCache(tmp_path / "new", MACHINE)
    assert cache.find("m", (360, 480, 1)) is None
    cache.keep("m", (360, 480, 1), choice)
    cache.keep("m", (240, 240, 1), Choice("eager"))
    again = ChoiceCache(tmp_path / "new", MACHINE)
    assert again.find("m", (360, 480, 1)) == choice
    assert again.find("m", (240, 240, 1)) == Choice("eager")
    for model, size in (("n", (360, 480, 1)), ("m", (480, 360, 1)), ("m", (360, 480, 2))):
        assert again.find(model, size) is None
    assert [path.name for path in (tmp_path / "new" / "runtimes").glob("*.json")] == [again.path.name]


def test_another_machine_has_another_file(tmp_path: Path) -> None:
    ChoiceCache(tmp_path, MACHINE).keep("m", (32, 32, 1), Choice("openvino"))
    assert ChoiceCache(tmp_path, {**MACHINE, "threads": 1}).find("m", (32, 32, 1)) is None


def test_compiled_architectures_are_stored_with_the_choices(tmp_path: Path) -> None:
    cache = ChoiceCache(tmp_path, MACHINE)
    cache.keep("m", (32, 32, 1), Choice("eager"))
    assert not cache.has_compiled("m")
    cache.keep_compiled("m")
    assert cache.has_compiled("m")
    assert not cache.has_compiled("n")
    assert cache.find("m", (32, 32, 1)) == Choice("eager")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "\x00", '{"format": "other", "choices": {"m 32x32 batch 1": {"runtime": "x"}}}',
        '{"format": "pspnet-runtimes-1"}', '{"format": "pspnet-runtimes-1", "choices": [], "compiled": 3}',
        '{"format": "pspnet-runtimes-1", "choices": {"m 32x32 batch 1": {"runtime": 3}}}',
        '{"format": "pspnet-runtimes-1", "choices": {"m 32x32 batch 1": []}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    cache = ChoiceCache(tmp_path, MACHINE)
    cache.path.parent.mkdir()
    cache.path.write_text(text)
    assert cache.find("m", (32, 32, 1)) is None
    assert not cache.has_compiled("m")
    cache.keep("m", (32, 32, 1), Choice("openvino"))
    assert ChoiceCache(tmp_path, MACHINE).find("m", (32, 32, 1)) == Choice("openvino")
    assert json.loads(cache.path.read_text())["machine"] == MACHINE


def test_invalid_details_of_an_entry_are_ignored(tmp_path: Path) -> None:
    cache = ChoiceCache(tmp_path, MACHINE)
    cache.keep("m", (32, 32, 1), Choice("openvino", {"eager": 1.0}))
    content = json.loads(cache.path.read_text())
    content["choices"]["m 32x32 batch 1"]["milliseconds"] = "fast"
    cache.path.write_text(json.dumps(content))
    assert cache.find("m", (32, 32, 1)) == Choice("openvino")


def test_a_read_only_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ChoiceCache(tmp_path / "file", MACHINE)
    cache.keep("m", (32, 32, 1), Choice("openvino"))
    assert cache.find("m", (32, 32, 1)) is None


def test_the_machine_description() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert set(machine) == {"processor", "cores", "threads", "device", "cuda", "versions"}
    assert machine["cuda"] == torch.version.cuda
    assert (machine["processor"], machine["cores"]) == (processor_name(), available_cores())
    assert machine["threads"] == torch.get_num_threads()
    assert machine["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in machine["versions"]["torch"]


def test_onnxruntime_gpu_is_a_separate_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: f"{package} 1.0")
    versions = describe_machine(torch.device("cpu"))["versions"]
    assert versions["onnxruntime-gpu"] == "onnxruntime-gpu 1.0"


_ADD = """
import sys
from pathlib import Path
from pspnet.inference.runtimes.trials import Choice, ChoiceCache

cache = ChoiceCache(Path(sys.argv[1]), {"processor": "a"})
print("ready", flush=True)
sys.stdin.readline()
for side in range(100):
    cache.keep(sys.argv[2], (side, 32, 1), Choice("eager"))
"""


@pytest.mark.slow
def test_concurrent_writes_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ADD, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for model in "ab"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("\n", timeout=120)
    cache = ChoiceCache(tmp_path, {"processor": "a"})
    assert all(cache.find(model, (side, 32, 1)) is not None for model in "ab" for side in range(100))


def test_the_lock_holder_can_store(tmp_path: Path) -> None:
    cache = ChoiceCache(tmp_path, MACHINE)
    with cache.alone():
        cache.keep("m", (32, 32, 1), Choice("eager"))
        with cache.alone():
            cache.keep_compiled("m")
    assert cache.has_compiled("m")
    with ChoiceCache(tmp_path, MACHINE).alone():  # the lock is free again
        assert cache.find("m", (32, 32, 1)) == Choice("eager")


def test_where_the_cache_is() -> None:
    assert cache_folder({"PSPNET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/pspnet")
    assert cache_folder({}) == Path.home() / ".cache" / "pspnet"
