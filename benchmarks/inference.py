"""Inference speed: the runtimes, the plain network, networks of other libraries and GluonCV.

    python benchmarks/inference.py --output inference.json
    python benchmarks/inference.py --model MODEL_DIR --gluon_python PYTHON --memory --frame_path --output inference.json

Every case maps the same uint8 image in memory to class ids in memory: normalisation, up-sampling, arg-max and, on a
GPU, both copies count. benchmarks/support/cases.py lists the cases; a case that cannot run here is skipped with its
reason. The cases are interleaved: each round runs every case once, in changing order, and speed-ups over `plain` are
taken per round. `of the peak`: operations of the network in its plain form per second, as a fraction of the rate of a
large float32 matrix product; work that a form saves counts as done. --memory starts each case in its own process,
twice: with an empty cache, and again. --frame_path times the stages from JPEG to PNG.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support import cold_start, frame_path
from benchmarks.support.cases import CASES, GLUONCV, Subject, case_flops, is_ours, open_case, random_model
from pspnet.artifact.model_directory import load_artifact
from pspnet.benchmarking.benchmark import PAUSE, PLAIN
from pspnet.benchmarking.peak import measure_peak
from pspnet.benchmarking.record import machine_text, run_record, versions, write_record
from pspnet.benchmarking.relative import compare_runtimes, table
from pspnet.benchmarking.table import markdown
from pspnet.benchmarking.timed_frames import jpeg, make_images, parse_size, size_text
from pspnet.errors import PspnetError
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.system.device import choose_device
from pspnet.system.exit_codes import run_guarded

_SIZES = ((240, 240), (360, 480))
# Exports that cases need, made for random weights.
_FORMATS = {"onnx": ("onnxruntime", "tensorrt"), "openvino": ("openvino",)}


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables, write the JSON file."""
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    formats = [format for format, names in _FORMATS.items() if set(names) & set(arguments.cases)]
    with contextlib.ExitStack() as stack:
        model_dir = arguments.model or stack.enter_context(
            random_model(arguments.num_classes, arguments.width, formats)
        )
        num_classes = len(load_artifact(model_dir).class_names)
        found = measure_all(arguments, Subject(model_dir, device, num_classes, arguments.gluon_python))
    if arguments.output:
        write_record(arguments.output, found)
        print(f"\nWritten: {arguments.output}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, help="model directory; by default PSPNet-R50 with random weights, and its exports")
    add("--num_classes", type=int, default=21, help="of the random weights (default: %(default)s)")
    add("--width", type=int, default=64, help="of the random weights; 4 is tiny (default: %(default)s)")
    add("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    add("--sizes", nargs="+", type=parse_size, default=_SIZES, metavar="HxW", help="default: 240x240 360x480")
    add("--batch", type=int, default=1, help="images per forward pass (default: %(default)s)")
    add("--rounds", type=int, default=7, help="default: %(default)s")
    add("--image", type=Path, help="image file, scaled to each size; by default a synthetic scene")
    add("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="default: %(default)s")
    add("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    add("--gluon_python", type=Path, help="a Python 3.8 with mxnet and gluoncv, for the case gluoncv")
    add("--memory", action="store_true", help="also start each case in its own process: memory and time to first mask")
    add("--frame_path", action="store_true", help="also time the stages from JPEG to PNG")
    add("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    for name in ("batch", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: found {getattr(arguments, name)}; expected 1 or more")
    return arguments


def measure_all(arguments: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """Run the requested parts and return the record."""
    peak = measure_peak(subject.device.type)
    settings = {
        "model": f"random weights, width {arguments.width}" if arguments.model is None else str(arguments.model),
        "num_classes": subject.num_classes,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "device": subject.device.type,
        "threads": torch.get_num_threads(),
        "image": "a synthetic scene" if arguments.image is None else str(arguments.image),
    }
    found: dict[str, Any] = {"benchmark": "inference", **run_record(), "settings": settings}
    found.update(peak_gflop_per_second=round(peak / 1e9, 1), sizes={})
    print(f"{machine_text(found['machine'])}; a large matrix product: {peak / 1e9:.0f} GFLOP/s in float32", flush=True)
    with _opened(arguments.cases, subject) as (cases, skipped):
        for size in arguments.sizes:
            entries = _measure_size(cases, skipped, subject, size, arguments, size == arguments.sizes[0])
            print(f"\n{size_text(size)}, batch {arguments.batch}, {arguments.rounds} rounds\n")
            print(table(entries, peak, PLAIN, arguments.batch), flush=True)
            found["sizes"][size_text(size)] = {entry.name: entry.record(peak, arguments.batch) for entry in entries}
    found["skipped"] = skipped
    if subject.gluon_python is not None and GLUONCV not in skipped:
        found["versions_of_gluoncv"] = versions(subject.gluon_python)
    for name, reason in skipped.items():
        print(f"\nleft out: {name}: {reason}")
    if arguments.frame_path:
        found["frame_path"] = _frame_paths(arguments, subject)
    if arguments.memory:
        found["starts"] = _starts([name for name in arguments.cases if name not in skipped], subject, arguments)
    return found


@contextlib.contextmanager
def _opened(names: Sequence[str], subject: Subject) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """The cases that can be opened, by name, and the reasons of the others."""
    cases: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    try:
        for name in names:
            try:
                cases[name] = open_case(name, subject)
            except PspnetError as error:
                skipped[name] = str(error)
        yield cases, skipped
    finally:
        if GLUONCV in cases:
            cases[GLUONCV].close()


def _measure_size(
    cases: dict[str, Any],
    skipped: dict[str, str],
    subject: Subject,
    size: tuple[int, int],
    arguments: argparse.Namespace,
    with_logits: bool,
) -> list[Any]:
    """Time the cases at one size. A case that cannot run moves to `skipped`."""
    images = make_images(size, arguments.batch, arguments.image)
    for name in list(cases):
        try:
            cases[name].prepare(*size, arguments.batch)
        except PspnetError as error:
            skipped[name] = str(error)
            del cases[name]
    if not cases:
        raise PspnetError(f"none of the cases can run here: {'; '.join(skipped.values())}")
    flops = {name: case_flops(name, subject, case, size, arguments.batch) for name, case in cases.items()}
    ours = [name for name in cases if is_ours(name)]
    return compare_runtimes(
        cases, images, PLAIN, arguments.rounds, flops, ours, ours if with_logits else (), {}, pause=PAUSE
    )


def _frame_paths(arguments: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """Times of the stages from JPEG to PNG in the eager runtime, at each size."""
    runtime = EagerRuntime(subject.network(), subject.device)
    found = {}
    for size in arguments.sizes:
        body = jpeg(make_images(size, path=arguments.image)[0])
        timings = frame_path.time_frame_path(runtime, body, max(arguments.rounds, 2))
        print(f"\nFrom JPEG ({len(body):,} bytes) to PNG, eager, {size_text(size)}\n")
        print(frame_path.table(timings), flush=True)
        found[size_text(size)] = {name: timing.record() for name, timing in timings.items()}
    return found


def _starts(names: Sequence[str], subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start each case in new processes at the last size: with an empty cache, and again."""
    size, found, rows = arguments.sizes[-1], {}, []
    flags = {"batch": arguments.batch, "num_classes": subject.num_classes, "gluon_python": subject.gluon_python}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pspnet-benchmark-cache-") as cache:
            ask = functools.partial(
                cold_start.ask, subject.model_dir, name, size, subject.device.type, Path(cache), **flags
            )
            try:
                first, later = ask(), ask()
            except PspnetError as error:
                print(f"\n{name} does not start: {error}")
                continue
        found[name] = {"first": first, "later": later}
        times = [f"{start[key]:.2f}" for start in (first, later) for key in ("open_s", "first_mask_s")]
        rows.append([name, f"{later['peak_mib'] or 0:.0f}", first.get("gpu_peak_mib", ""), *times])
    headers = ["case", "peak MiB", "GPU MiB", "first start: open s", "first mask s", "later: open s", "first mask s"]
    print(f"\nEach case in its own process, {size_text(size)}, threads as PyTorch chooses\n")
    print(markdown(headers, rows), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
