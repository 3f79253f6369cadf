"""Which runtime is the fastest here: a short trial, and a file that remembers what it found on this machine.

Legend: N images in a batch, H, W image height and width.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pspnet.inference.runtimes.base import Runtime
from pspnet.system.atomic_files import atomic_write
from pspnet.system.cpu import available_cores, processor_name

try:
    import fcntl
except ImportError:  # Windows: processes that start together run their trials together
    fcntl = None  # type: ignore[assignment]

FORMAT = "pspnet-runtimes-1"
REFERENCE = "eager"
"""What the others are compared with, in time and in masks."""
MIN_AGREEMENT = 0.99
"""Share of pixels in which a runtime's mask must be the reference's: roundings decide a few, another model many."""
MIN_GAIN = 0.05
"""Share of the reference's time that another runtime must save to be chosen: less is the trial's own noise."""

_ROUNDS = range(5, 16)  # so many at least, and at most; each runtime runs twice in each
_SECONDS = 3.0  # after so long, passes that are not timed included, no further round begins
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino")


@dataclass(frozen=True)
class Choice:
    """What a trial found for one size of images.

    runtime: the name of the one to use.
    milliseconds: the median of each runtime's passes.
    agreement: share of the pixels in which each runtime's mask is that of eager.
    failed: why others took no part, by name.
    """

    runtime: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run_trial(
    runtimes: Mapping[str, Runtime],
    images: np.ndarray,
    failed: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Time prepared runtimes on the same images in alternation; the fastest whose masks are eager's is the choice.

    Args:
        runtimes: by name; REFERENCE must be among them.
        images: (N, H, W, 3) uint8.
        failed: what to note of runtimes that could not take part.
    """
    failed = dict(failed or {})
    expected = runtimes[REFERENCE].masks(images)
    agreement = {REFERENCE: 1.0}
    for name, runtime in runtimes.items():
        if name != REFERENCE:
            try:
                agreement[name] = float((runtime.masks(images) == expected).mean())
            except Exception as error:  # whatever it is, a runtime that fails here is none to rely on
                failed[name] = in_words(error)
    sound = {name: runtimes[name] for name, share in agreement.items() if share >= MIN_AGREEMENT}
    seconds = _time_in_turns(sound, images, failed, clock)
    fastest = min(seconds, key=lambda name: seconds[name])
    if seconds[fastest] > (1 - MIN_GAIN) * seconds[REFERENCE]:
        fastest = REFERENCE
    milliseconds = {name: round(1000 * value, 3) for name, value in seconds.items()}
    return Choice(fastest, milliseconds, {name: round(share, 6) for name, share in agreement.items()}, failed)


def _time_in_turns(
    runtimes: Mapping[str, Runtime], images: np.ndarray, failed: dict[str, str], clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a pass. Every round runs all of them twice, starting with another one each time.

    One that raises is noted in `failed` and left out of further rounds and of the result; the reference may not.
    """
    names = list(runtimes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    started = clock()
    for round_number in range(_ROUNDS.stop):
        enough = round_number >= (_ROUNDS.start if len(names) > 1 else 1)
        if enough and (len(names) == 1 or clock() - started > _SECONDS):
            break
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            try:
                runtimes[name].masks(images)  # so that the caches hold its own weights, as in a stream of images
                before = clock()
                runtimes[name].masks(images)
                seconds[name].append(clock() - before)
            except Exception as error:
                if name == REFERENCE:
                    raise
                failed[name] = in_words(error)
                names.remove(name)
    return {name: statistics.median(seconds[name]) for name in names}


def in_words(error: Exception) -> str:
    """Why a runtime takes no part, as a choice notes it."""
    return f"{type(error).__name__}: {error}"[:300]


def trial_images(height: int, width: int, batch: int) -> np.ndarray:
    """(N, H, W, 3) uint8: smooth patches of colour with a little noise, the same ones every time."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (batch, height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = [Image.fromarray(patch).resize((width, height), Image.Resampling.BICUBIC) for patch in coarse]
    noise = generator.integers(-8, 9, (batch, height, width, 3))
    images: np.ndarray = np.clip(np.stack([np.asarray(image) for image in smooth]) + noise, 0, 255).astype(np.uint8)
    return images


def describe_machine(device: torch.device) -> dict[str, Any]:
    """All that a choice depends on besides the network and the size of images."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "versions": versions,
    }


def digest(*parts: object) -> str:
    """16 hexadecimal digits that stand for some values' JSON text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class ChoiceCache:
    """The choices that were made on a machine, in one JSON file. A file that is damaged or foreign counts as none.

    Args:
        folder: gets the file; need not exist. Where it cannot be written, nothing is remembered.
        machine: see describe_machine.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        self._machine = dict(machine)
        self.path = folder / "runtimes" / f"{digest(self._machine)}.json"
        self._lock = threading.RLock()
        self._is_alone = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads and processes of this machine from the file's lock; may be nested.

        A process that is killed lets go of it. Where no lock can be had, as in a folder that cannot be written, the
        block runs without.
        """
        with self._lock, contextlib.ExitStack() as stack:
            if not self._is_alone:
                with contextlib.suppress(OSError):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(open(self.path.with_suffix(".lock"), "a"))
                    if fcntl is not None:
                        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
                stack.callback(setattr, self, "_is_alone", False)
                self._is_alone = True
            yield

    def find(self, model: str, size: Sequence[int]) -> Choice | None:
        """The choice for a kind of model and a size (H, W, N)."""
        content = self._read()["choices"].get(_key(model, size))
        return _choice(content)

    def keep(self, model: str, size: Sequence[int], choice: Choice) -> None:
        """Remember a choice."""
        self._change(lambda content: content["choices"].update({_key(model, size): asdict(choice)}))

    def has_compiled(self, model: str) -> bool:
        """Whether a kind of model was compiled on this machine before."""
        return model in self._read()["compiled"]

    def keep_compiled(self, model: str) -> None:
        """Remember that a kind of model was compiled."""
        self._change(lambda content: content["compiled"].update({model: True}))

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        with self.alone(), contextlib.suppress(OSError):
            content = self._read()
            change(content)
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _read(self) -> dict[str, Any]:
        empty = {"format": FORMAT, "machine": self._machine, "choices": {}, "compiled": {}}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return empty
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            return empty
        return {**empty, **{key: content[key] for key in ("choices", "compiled") if isinstance(content.get(key), dict)}}


def _key(model: str, size: Sequence[int]) -> str:
    height, width, batch = size
    return f"{model} {width}x{height} batch {batch}"


def _choice(content: Any) -> Choice | None:
    """The choice that a file's entry describes, or None where it describes none."""
    if not isinstance(content, dict) or not isinstance(content.get("runtime"), str):
        return None
    rest = {name: content.get(name) for name in ("milliseconds", "agreement", "failed")}
    return Choice(content["runtime"], **{name: value for name, value in rest.items() if isinstance(value, dict)})
