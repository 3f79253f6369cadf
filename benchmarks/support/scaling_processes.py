"""Masks from several processes at once, each with its own copy of the model: a part of scaling.py.

    python scaling_processes.py MODEL_DIR HEIGHTxWIDTH THREADS

is such a process: for a number on standard input it makes that many masks, then writes one line of JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The project, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pspnet.artifact.model_directory import load_artifact
from pspnet.benchmarking.interleave import Timing, measure
from pspnet.benchmarking.peak_memory import peak_mib
from pspnet.benchmarking.table import markdown, milliseconds
from pspnet.benchmarking.timed_frames import Size, make_images, parse_size, size_text
from pspnet.errors import PspnetError
from pspnet.inference.runtimes.eager import EagerRuntime


class Group:
    """Processes that hold one model each and work at the same time; close them in the end.

    Args:
        count: how many.
        threads: of each.
    """

    def __init__(self, model_dir: Path, size: Size, count: int, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), str(model_dir), size_text(size), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.peak_mib = 0.0
        self._processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
            )
            for _ in range(count)
        ]

    def make(self, masks: int) -> None:
        """Have every process make so many masks; returns when the last one has. PspnetError where one ended."""
        answers = []
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{masks}\n")
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise PspnetError(f"a process that makes masks ended with {process.wait(10)}.")
            answers.append(json.loads(line))
        self.peak_mib = sum(answer["peak_mib"] or 0.0 for answer in answers)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


@dataclass(frozen=True)
class Sharing:
    """Processes with so many threads each, the time of a round in which each makes `masks`, and their memory."""

    processes: int
    threads: int
    masks: int
    timing: Timing
    peak_mib: float

    @property
    def masks_per_second(self) -> float:
        """Of all processes together."""
        return self.processes * self.masks / self.timing.median

    def record(self) -> dict[str, Any]:
        """What the JSON file keeps."""
        counts = {"processes": self.processes, "threads": self.threads, "masks": self.masks}
        rate = {"masks_per_second": round(self.masks_per_second, 4), "peak_mib": round(self.peak_mib, 1)}
        return {**counts, **self.timing.record(), **rate}


def measure_processes(
    model_dir: Path, size: Size, sharings: Sequence[tuple[int, int]], masks: int, rounds: int
) -> list[Sharing]:
    """Time groups of (processes, threads) in turns; those that wait for their turn do nothing."""
    groups: dict[tuple[int, int], Group] = {}
    with contextlib.ExitStack() as stack:
        for sharing in sharings:
            groups[sharing] = Group(model_dir, size, *sharing)
            stack.callback(groups[sharing].close)
        cases: dict[tuple[int, int], Callable[[], object]] = {
            sharing: functools.partial(group.make, masks) for sharing, group in groups.items()
        }
        timings = measure(cases, rounds)
        return [Sharing(*sharing, masks, timings[sharing], groups[sharing].peak_mib) for sharing in sharings]


def table(sharings: Sequence[Sharing]) -> str:
    """A Markdown table, one line for each way to share the cores."""
    headers = ["processes", "threads of each", "ms until a mask is there", "masks/s of all", "peak MiB of all"]
    rows = []
    for sharing in sharings:
        each = Timing(tuple(value / sharing.masks for value in sharing.timing.seconds))
        figures = [milliseconds(each), f"{sharing.masks_per_second:.2f}", f"{sharing.peak_mib:.0f}"]
        rows.append([sharing.processes, sharing.threads, *figures])
    return markdown(headers, rows)


def main(argv: Sequence[str]) -> None:
    """Answer until standard input ends."""
    model_dir, size, threads = Path(argv[0]), parse_size(argv[1]), int(argv[2])
    torch.set_num_threads(threads)
    runtime = EagerRuntime(load_artifact(model_dir).model, torch.device("cpu"))
    runtime.prepare(*size)
    images = make_images(size)
    for line in sys.stdin:
        for _ in range(int(line)):
            runtime.masks(images)
        answer: dict[str, Any] = {"peak_mib": peak_mib()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
