"""`pspnet benchmark`: how fast masks are made on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.errors import ConfigError, PspnetError
from pspnet.inference.runtimes.base import AUTO, NAMES

if TYPE_CHECKING:
    from torch import nn

    from pspnet.inference.runtimes.base import Runtime
    from pspnet.inference.runtimes.factory import Source

_DESCRIPTION = """\
Time the runtimes of a model, or of a full-size PSPNet with random weights, beside `plain`: the same weights in the
network's published form, in PyTorch without compiling, float32. From the image in memory to its class ids in memory.
All take turns, so that a change of the machine's speed meets all of them. docs/benchmarks.md explains the table."""

_PLAIN = "plain"
_RUNTIMES = tuple(name for name in NAMES if name != AUTO)
_SIZE = (360, 480)
_CLASSES = 21  # of the random weights: PASCAL VOC's


def register(subparsers: Any) -> None:
    """Add `benchmark` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "benchmark",
        help="how fast masks are made on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model_dir", metavar="MODEL_DIR", type=Path, nargs="?", help="a trained model (default: random weights)")
    add("--size", type=_size, metavar="HxW", help="height x width in pixels (default: the --image's own, or 360x480)")
    add("--image", type=Path, metavar="FILE", help="image to predict (default: a drawn scene)")
    add(
        "--runtimes",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(_RUNTIMES)} (default: all that can run here)",
    )
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    add("--batch", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--rounds", type=int, default=7, metavar="N", help="how often each is timed (default: 7)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: as PyTorch chooses)")
    add("--output", type=Path, metavar="FILE", help="JSON file for the figures, machine and versions")
    parser.set_defaults(run=run_benchmark)


def _size(text: str) -> tuple[int, int]:
    # Imported here: the parser is made for every command, and this one needs torch.
    from pspnet.benchmarking.timed_frames import parse_size

    return parse_size(text)


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Measure, print the table and what `auto` uses here, and write the JSON file."""
    _check(arguments)
    import torch

    from pspnet.benchmarking.peak import measure_peak
    from pspnet.benchmarking.record import machine_text, run_record, write_record
    from pspnet.system.device import choose_device

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    size = arguments.size or _size_of(arguments.image)
    source, what = _source(arguments.model_dir, device)
    record = run_record(arguments.command_line)
    _warn_of_load(record["machine"])
    peak = measure_peak(device.type)
    print(f"{machine_text(record['machine'])}; a large matrix product: {peak / 1e9:.0f} GFLOP/s in float32")
    print(f"{what}; {size[0]}x{size[1]}, batch {arguments.batch}, {arguments.rounds} rounds\n", flush=True)
    found = _measure(arguments, source, size, peak)
    print(f"\n--runtime auto uses {found['auto']} for this size here.")
    if arguments.output:
        write_record(arguments.output, {**record, "model": what, "size": list(size), "batch": arguments.batch, **found})
        print(f"Written: {arguments.output}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("batch", "rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: found {value}; expected 1 or more.")
    for name in arguments.runtimes or ():
        if name not in _RUNTIMES:
            hint = "; which one auto uses is always told" if name == AUTO else ""
            raise ConfigError(f"--runtimes: found {name!r}; expected one of {', '.join(_RUNTIMES)}{hint}.")


def _size_of(image: Path | None) -> tuple[int, int]:
    from pspnet.data.io.images import read_image

    if image is None:
        return _SIZE
    height, width = read_image(image).shape[:2]
    return height, width


def _source(model_dir: Path | None, device: Any) -> tuple[Source, str]:
    """What the runtimes are made of, and that in words."""
    from pspnet.artifact.model_directory import load_artifact
    from pspnet.inference.runtimes.factory import Source

    if model_dir is not None:
        artifact = load_artifact(model_dir)
        what = f"{type(artifact.model).__name__}, {len(artifact.class_names)} classes, {model_dir}"
        return Source(lambda: load_artifact(model_dir).model, device, model_dir=model_dir), what
    network = _random_network()
    return Source(lambda: network, device), f"PSPNet, {_CLASSES} classes, random weights"


def _random_network() -> nn.Module:
    """At full width, with activations of a trained network's scale."""
    import torch

    from pspnet.benchmarking.baselines import settle_statistics
    from pspnet.benchmarking.timed_frames import make_images
    from pspnet.models.build import build_model

    torch.manual_seed(0)
    network = build_model(_CLASSES).eval()
    settle_statistics(network, make_images((240, 240), batch=2))
    return network


def _measure(arguments: argparse.Namespace, source: Source, size: tuple[int, int], peak: float) -> dict[str, Any]:
    """Times of all that can run here; prints the table and why others were left out."""
    from pspnet.benchmarking.baselines import network_flops
    from pspnet.benchmarking.interleave import measure
    from pspnet.benchmarking.relative import agree, compare, table
    from pspnet.benchmarking.timed_frames import make_images

    images = make_images(size, arguments.batch, arguments.image)
    runtimes, ready, left_out = _open(arguments.runtimes, source, size, arguments.batch)
    timings = measure(
        {name: lambda runtime=runtime: runtime.masks(images) for name, runtime in runtimes.items()},  # type: ignore[misc]
        arguments.rounds,
        pause=0.1,
        settle=1,
    )
    # A compiler would make another network for logits, which takes as long as the first one.
    reference = runtimes[_PLAIN].logits(images)
    agreements = {
        name: agree(runtime, images, reference, with_logits=name != "compile")
        for name, runtime in runtimes.items()
        if name != _PLAIN
    }
    flops = network_flops(source.network(), *size, arguments.batch)
    entries = compare(timings, _PLAIN, dict.fromkeys(timings, flops), agreements, ready)
    print(table(entries, peak, _PLAIN, arguments.batch), flush=True)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    return {
        "peak_gflop_per_second": round(peak / 1e9, 1),
        "runtimes": {entry.name: entry.record(peak, arguments.batch) for entry in entries},
        "left_out": left_out,
        "auto": _automatic_choice(source, size, arguments.batch),
    }


def _open(
    names: list[str] | None, source: Source, size: tuple[int, int], batch: int
) -> tuple[dict[str, Runtime], dict[str, float], dict[str, str]]:
    """The runtimes that can run here, prepared for a size, the seconds that each took, and why others cannot."""
    from pspnet.benchmarking.baselines import NetworkRuntime, plain_network
    from pspnet.inference.runtimes.factory import open_runtime

    runtimes: dict[str, Runtime] = {}
    ready: dict[str, float] = {}
    left_out: dict[str, str] = {}
    wanted = names or [name for name in _RUNTIMES if name != "tensorrt" or source.device.type == "cuda"]
    for name in [_PLAIN, *wanted]:
        if name == "compile":
            print("Compiling, which takes a minute or more; --runtimes leaves it out ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            if name == _PLAIN:
                runtime: Runtime = NetworkRuntime(name, plain_network(source.network()), source.device)
            else:
                runtime = open_runtime(name, source)
            runtime.prepare(*size, batch)
        except PspnetError as error:
            left_out[name] = str(error)
            continue
        runtimes[name], ready[name] = runtime, time.perf_counter() - start
    if _PLAIN in left_out:
        raise PspnetError(left_out[_PLAIN])
    if len(runtimes) == 1:
        raise ConfigError("\n".join(f"{name}: {reason}" for name, reason in left_out.items()))
    return runtimes, ready, left_out


def _automatic_choice(source: Source, size: tuple[int, int], batch: int) -> str:
    """Which runtime `auto` uses for a size."""
    from pspnet.inference.runtimes.automatic import AutomaticRuntime
    from pspnet.inference.runtimes.factory import open_runtime

    runtime = open_runtime(AUTO, source)
    if not isinstance(runtime, AutomaticRuntime):
        return runtime.name
    runtime.prepare(*size, batch)
    return runtime.runtime_for(*size, batch).name


def _warn_of_load(machine: dict[str, Any]) -> None:
    load, cores = (machine["load_average"] or [0.0])[0], machine["cores"]
    if load > 0.5 * cores:
        print(f"Other programs keep this machine busy (load {load} on {cores} cores): times will be too long.")
