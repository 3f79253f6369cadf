"""Timing of a model's runtimes against its published form; `pspnet benchmark` runs this."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pspnet.artifact.model_directory import load_artifact
from pspnet.artifact.published import find_model
from pspnet.benchmarking.baselines import NetworkRuntime, network_flops, plain_network, settle_statistics
from pspnet.benchmarking.benchmark_request import RUNTIMES, BenchmarkRequest, Size
from pspnet.benchmarking.peak import measure_peak
from pspnet.benchmarking.record import machine_text, run_record
from pspnet.benchmarking.relative import compare_runtimes, table
from pspnet.benchmarking.timed_frames import make_images
from pspnet.data.io.images import read_image
from pspnet.errors import ConfigError, PspnetError
from pspnet.inference.runtimes.automatic import AutomaticRuntime
from pspnet.inference.runtimes.base import AUTO, Runtime
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.models.build import build_model
from pspnet.system.device import choose_device

PLAIN = "plain"
"""The reference: the network as published, eager, float32."""
PAUSE = 0.1
"""Seconds of rest before a runtime is timed, in which idle threads of other libraries stop spinning."""
_SIZE = (360, 480)
_CLASSES = 21  # of the random weights, as in PASCAL VOC


def benchmark(
    request: BenchmarkRequest, report: Callable[[str], object] = print, command: str | None = None
) -> dict[str, Any]:
    """Time the runtimes and return the record: figures, machine, versions and the runtime that `auto` chooses.

    Args:
        report: called with each line of progress and with the table.
        command: command line to record; this process's own by default.

    Raises PspnetError if no runtime can run, DataError for an unreadable image, WeightsError for an unusable model.
    """
    if request.threads:
        torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    size = request.size or _image_size(request.image)
    source, model = _open_model(request.model_dir, device)
    record = run_record(command)
    warning = load_warning(record["machine"])
    if warning:
        report(warning)
    peak = measure_peak(device.type)
    report(f"{machine_text(record['machine'])}; a large matrix product: {peak / 1e9:.0f} GFLOP/s in float32")
    report(f"{model}; {size[0]}x{size[1]}, batch {request.batch}, {request.rounds} rounds\n")
    figures = _measure(request, source, size, peak, report)
    report(f"\n--runtime auto uses {figures['auto']} for this size here.")
    return {**record, "model": model, "size": list(size), "batch": request.batch, **figures}


def _image_size(image: Path | None) -> Size:
    if image is None:
        return _SIZE
    height, width = read_image(image).shape[:2]
    return height, width


def _open_model(model_dir: Path | None, device: torch.device) -> tuple[Source, str]:
    """The source of the runtimes and its description."""
    if model_dir is not None:
        model_dir = find_model(model_dir)
        artifact = load_artifact(model_dir)
        model = f"{type(artifact.model).__name__}, {len(artifact.class_names)} classes, {model_dir}"
        return Source(lambda: load_artifact(model_dir).model, device, model_dir=model_dir), model
    torch.manual_seed(0)
    network = build_model(_CLASSES).eval()
    settle_statistics(network, make_images((240, 240), batch=2))
    return Source(lambda: network, device), f"PSPNet, {_CLASSES} classes, random weights"


def _measure(
    request: BenchmarkRequest, source: Source, size: Size, peak: float, report: Callable[[str], object]
) -> dict[str, Any]:
    images = make_images(size, request.batch, request.image)
    runtimes, ready, left_out = _open_runtimes(request, source, size, report)
    flops = dict.fromkeys(runtimes, network_flops(source.network(), *size, request.batch))
    # `compile` would compile a second network for logits, which takes as long as the first one.
    with_logits = set(runtimes) - {"compile"}
    entries = compare_runtimes(runtimes, images, PLAIN, request.rounds, flops, set(runtimes), with_logits, ready, PAUSE)
    report(table(entries, peak, PLAIN, request.batch))
    for name, reason in left_out.items():
        report(f"left out: {name}: {reason}")
    return {
        "peak_gflop_per_second": round(peak / 1e9, 1),
        "runtimes": {entry.name: entry.record(peak, request.batch) for entry in entries},
        "left_out": left_out,
        "auto": _automatic_choice(source, size, request.batch),
    }


def _open_runtimes(
    request: BenchmarkRequest, source: Source, size: Size, report: Callable[[str], object]
) -> tuple[dict[str, Runtime], dict[str, float], dict[str, str]]:
    """Prepared runtimes, the seconds from opening to the first mask of each, and the reasons of those left out."""
    runtimes: dict[str, Runtime] = {}
    ready: dict[str, float] = {}
    left_out: dict[str, str] = {}
    default = [name for name in RUNTIMES if name != "tensorrt" or source.device.type == "cuda"]
    for name in [PLAIN, *(request.runtimes or default)]:
        if name == "compile":
            report("Compiling takes a minute or more; leave compile out of --runtimes to skip it ...")
        start = time.perf_counter()
        try:
            if name == PLAIN:
                runtime: Runtime = NetworkRuntime(name, plain_network(source.network()), source.device)
            else:
                runtime = open_runtime(name, source)
            runtime.prepare(*size, request.batch)
        except PspnetError as error:
            left_out[name] = str(error)
            continue
        runtimes[name], ready[name] = runtime, time.perf_counter() - start
    if PLAIN in left_out:
        raise PspnetError(left_out[PLAIN])
    if len(runtimes) == 1:
        raise ConfigError("\n".join(f"{name}: {reason}" for name, reason in left_out.items()))
    return runtimes, ready, left_out


def _automatic_choice(source: Source, size: Size, batch: int) -> str:
    runtime = open_runtime(AUTO, source)
    if not isinstance(runtime, AutomaticRuntime):
        return runtime.name
    runtime.prepare(*size, batch)
    return runtime.runtime_for(*size, batch).name


def load_warning(machine: dict[str, Any]) -> str | None:
    """A warning if other programs use more than half of the cores; else None."""
    load, cores = (machine["load_average"] or [0.0])[0], machine["cores"]
    if load <= 0.5 * cores:
        return None
    return f"Other programs keep this machine busy (load {load} on {cores} cores): times will be too long."
