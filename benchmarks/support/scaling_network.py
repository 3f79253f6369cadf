"""The network's cost against image size, batch and classes: the parts of scaling.py that time ours beside plain."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import cold_start
from benchmarks.support.small_model import random_model
from pspnet.artifact.model_directory import load_artifact
from pspnet.benchmarking.baselines import NetworkRuntime, network_flops, plain_network
from pspnet.benchmarking.interleave import Timing, measure, ratio_quartiles
from pspnet.benchmarking.table import factor, markdown, milliseconds, percent
from pspnet.benchmarking.timed_frames import Size, make_images, size_text
from pspnet.inference.runtimes.eager import EagerRuntime


@dataclass(frozen=True)
class Point:
    """A batch of images of one size through a network of so many classes."""

    label: str
    size: Size = (240, 240)
    batch: int = 1
    num_classes: int = 21


_SIZES = ((128, 128), (240, 240), (360, 480), (473, 473), (720, 960))
POINTS = {
    "size": [Point(size_text(size), size) for size in _SIZES],
    "batch": [Point(str(count), batch=count) for count in (1, 2, 4, 8)],
    "classes": [Point(str(count), num_classes=count) for count in (2, 21, 150)],
}


@dataclass(frozen=True)
class Cost:
    """What a point costs. flops: of its batch in the published form; memory: of ours, what cold_start.py found."""

    point: Point
    plain: Timing
    ours: Timing
    flops: int
    memory: dict[str, Any] = field(default_factory=dict)

    def record(self, peak: float) -> dict[str, Any]:
        """What the JSON file keeps."""
        point = self.point
        return {
            "label": point.label,
            "pixels": point.size[0] * point.size[1],
            "batch": point.batch,
            "num_classes": point.num_classes,
            "gflop": round(self.flops / 1e9, 3),
            "plain": {**self.plain.record(), "share_of_peak": round(self.flops / self.plain.median / peak, 4)},
            "ours": {**self.ours.record(), "share_of_peak": round(self.flops / self.ours.median / peak, 4)},
            "gain": [round(value, 4) for value in ratio_quartiles(self.plain, self.ours)],
            "memory": self.memory,
        }


def measure_points(
    points: Sequence[Point], device: torch.device, rounds: int, width: int = 64, with_memory: bool = False
) -> list[Cost]:
    """Time ours and plain at all points, in turns."""
    with contextlib.ExitStack() as stack:
        counts = dict.fromkeys(point.num_classes for point in points)
        folders = {count: stack.enter_context(random_model(count, width)) for count in counts}
        networks = {count: load_artifact(folder).model for count, folder in folders.items()}
        flops = [network_flops(networks[point.num_classes], *point.size, point.batch) for point in points]
        runtimes: dict[str, dict[int, Any]] = {
            "plain": {n: NetworkRuntime("plain", plain_network(network), device) for n, network in networks.items()},
            "ours": {n: EagerRuntime(network, device) for n, network in networks.items()},
        }
        cases: dict[tuple[str, Point], Callable[[], object]] = {}
        for point in points:
            images = make_images(point.size, point.batch)
            for name, by_classes in runtimes.items():
                by_classes[point.num_classes].prepare(*point.size, point.batch)
                cases[name, point] = functools.partial(by_classes[point.num_classes].masks, images)
        # Twice, since weights are laid out for a size when it comes a second time.
        timings = measure(cases, rounds, warmup=0, settle=2)
        memory = [_memory(point, folders[point.num_classes], device) if with_memory else {} for point in points]
    return [
        Cost(point, timings["plain", point], timings["ours", point], count, found)
        for point, count, found in zip(points, flops, memory)
    ]


def _memory(point: Point, folder: Path, device: torch.device) -> dict[str, Any]:
    """Memory of ours in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="pspnet-benchmark-cache-") as cache:
        found = cold_start.ask(folder, "eager", point.size, device.type, Path(cache), batch=point.batch)
    return {key: value for key, value in found.items() if key.endswith("_mib")}


def table(what: str, costs: Sequence[Cost], peak: float) -> str:
    """A Markdown table, one line a point."""
    headers = [what, "plain ms", "ours ms", "ours, ms an image", "to plain", "GFLOP", "plain of peak", "ours of peak"]
    has_memory = any(cost.memory for cost in costs)
    rows = []
    for cost in costs:
        shares = [percent(cost.flops / timing.median / peak) for timing in (cost.plain, cost.ours)]
        an_image = f"{1000 * cost.ours.median / cost.point.batch:.1f}"
        gain = factor(ratio_quartiles(cost.plain, cost.ours))
        row = [cost.point.label, milliseconds(cost.plain), milliseconds(cost.ours), an_image, gain]
        row += [f"{cost.flops / 1e9:.1f}", *shares]
        rows.append(row + [_memory_text(cost.memory)] * has_memory)
    return markdown(headers + ["peak MiB"] * has_memory, rows)


def _memory_text(memory: dict[str, Any]) -> str:
    found = memory.get("gpu_peak_mib") or memory.get("peak_mib")
    return "" if found is None else f"{found:.0f}"
