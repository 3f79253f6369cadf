"""Trials that find the fastest runtime on this machine, and the cache of their results.

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
except ImportError:  # Windows: processes that start together run concurrent trials
    fcntl = None  # type: ignore[assignment]

FORMAT = "pspnet-runtimes-1"
REFERENCE = "eager"
"""The runtime that the others are compared with, in time and in masks."""
MIN_AGREEMENT = 0.99
"""Minimum fraction of pixels equal to the reference's mask: rounding changes a few, a wrong model many."""
MIN_GAIN = 0.05
"""Minimum fraction of the reference's time that another runtime must save: less is noise of the trial."""

_ROUNDS = range(5, 16)  # minimum and maximum number of rounds; each runs every runtime twice
_SECONDS = 3.0  # after this time, untimed passes included, no more rounds start
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino")


@dataclass(frozen=True)
class Choice:
    """Result of a trial for one image size.

    runtime: name of the fastest one.
    milliseconds: median time of each runtime.
    agreement: fraction of pixels in which each runtime's mask equals eager's.
    failed: reasons of the excluded runtimes, by name.
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
    """Time prepared runtimes, interleaved, on the same images; choose the fastest whose masks agree with eager's.

    Args:
        runtimes: by name, including REFERENCE.
        images: (N, H, W, 3) uint8.
        failed: reasons of runtimes that were excluded before.
    """
    failed = dict(failed or {})
    expected = runtimes[REFERENCE].masks(images)
    agreement = {REFERENCE: 1.0}
    for name, runtime in runtimes.items():
        if name != REFERENCE:
            try:
                agreement[name] = float((runtime.masks(images) == expected).mean())
            except Exception as error:  # any failure here excludes the runtime
                failed[name] = error_text(error)
    agreeing = {name: runtimes[name] for name, fraction in agreement.items() if fraction >= MIN_AGREEMENT}
    seconds = _time_interleaved(agreeing, images, failed, clock)
    fastest = min(seconds, key=lambda name: seconds[name])
    if seconds[fastest] > (1 - MIN_GAIN) * seconds[REFERENCE]:
        fastest = REFERENCE
    milliseconds = {name: round(1000 * value, 3) for name, value in seconds.items()}
    return Choice(fastest, milliseconds, {name: round(fraction, 6) for name, fraction in agreement.items()}, failed)


def _time_interleaved(
    runtimes: Mapping[str, Runtime], images: np.ndarray, failed: dict[str, str], clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a forward pass. Every round runs each runtime twice, starting with a different one.

    One that raises is recorded in `failed` and excluded from then on; an error of the reference is raised.
    """
    names = list(runtimes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    started = clock()
    for round_number in range(_ROUNDS.stop):
        enough = round_number >= (_ROUNDS.start if len(names) > 1 else 1)
        if enough and (len(names) == 1 or clock() - started > _SECONDS):
            break
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            try:
                runtimes[name].masks(images)  # fills the caches with its own weights, as in a stream of images
                before = clock()
                runtimes[name].masks(images)
                seconds[name].append(clock() - before)
            except Exception as error:
                if name == REFERENCE:
                    raise
                failed[name] = error_text(error)
                names.remove(name)
    return {name: statistics.median(seconds[name]) for name in names}


def error_text(error: Exception) -> str:
    """The reason of an excluded runtime, as stored in a Choice."""
    return f"{type(error).__name__}: {error}"[:300]


def trial_images(height: int, width: int, batch: int) -> np.ndarray:
    """(N, H, W, 3) uint8: smooth patches of colour with a little noise, deterministic."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (batch, height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = [Image.fromarray(patch).resize((width, height), Image.Resampling.BICUBIC) for patch in coarse]
    noise = generator.integers(-8, 9, (batch, height, width, 3))
    images: np.ndarray = np.clip(np.stack([np.asarray(image) for image in smooth]) + noise, 0, 255).astype(np.uint8)
    return images


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Everything that a choice depends on besides the network and the image size."""
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
    """16 hexadecimal digits of the SHA-256 of some values' JSON text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class ChoiceCache:
    """Persistent choices of a machine in one JSON file. A damaged or foreign file counts as empty.

    Args:
        folder: of the file; may be missing. If it is not writable, nothing is stored.
        machine: see describe_machine.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        self._machine = dict(machine)
        self.path = folder / "runtimes" / f"{digest(self._machine)}.json"
        self._lock = threading.RLock()
        self._is_alone = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the file's lock against other threads and processes of this machine; reentrant.

        The lock is released when a process is killed. If it cannot be acquired, as in a read-only folder, the block
        runs without it.
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
        """The choice for an architecture and a size (H, W, N), if any."""
        content = self._read()["choices"].get(_key(model, size))
        return _choice(content)

    def keep(self, model: str, size: Sequence[int], choice: Choice) -> None:
        """Store a choice."""
        self._change(lambda content: content["choices"].update({_key(model, size): asdict(choice)}))

    def has_compiled(self, model: str) -> bool:
        """Return True if an architecture was compiled on this machine before."""
        return model in self._read()["compiled"]

    def keep_compiled(self, model: str) -> None:
        """Store that an architecture was compiled."""
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
    """The choice in an entry of the file; None if the entry is invalid."""
    if not isinstance(content, dict) or not isinstance(content.get("runtime"), str):
        return None
    rest = {name: content.get(name) for name in ("milliseconds", "agreement", "failed")}
    return Choice(content["runtime"], **{name: value for name, value in rest.items() if isinstance(value, dict)})
