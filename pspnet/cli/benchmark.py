"""`pspnet benchmark`: inference speed of the runtimes on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pspnet.inference.runtimes.base import AUTO, NAMES

_DESCRIPTION = """\
Time the runtimes of a model, or of a full-size PSPNet with random weights, against `plain`: the same weights in the
network's published form, in PyTorch without compiling, float32. Timed from the image in memory to its class ids in
memory. The runtimes are interleaved, so that a change of the machine's speed affects all of them.
docs/benchmarks.md explains the table."""


def register(subparsers: Any) -> None:
    """Add `benchmark` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "benchmark",
        help="measure inference speed on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(name for name in NAMES if name != AUTO)
    add = parser.add_argument
    add("model_dir", metavar="MODEL_DIR", type=Path, nargs="?", help="a trained model (default: random weights)")
    add("--size", type=_size, metavar="HxW", help="height x width in pixels (default: the --image's own, or 360x480)")
    add("--image", type=Path, metavar="FILE", help="image to predict (default: a synthetic scene)")
    add("--runtimes", nargs="+", metavar="NAME", help=f"of {names} (default: all that can run here)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    add("--batch", type=int, default=1, metavar="N", help="images per forward pass (default: 1)")
    add("--rounds", type=int, default=7, metavar="N", help="how often each is timed (default: 7)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: as PyTorch chooses)")
    add("--output", type=Path, metavar="FILE", help="JSON file for the figures, machine and versions")
    parser.set_defaults(run=run_benchmark)


def _size(text: str) -> tuple[int, int]:
    # Imported here: the parser is built for every command, and this module needs torch.
    from pspnet.benchmarking.timed_frames import parse_size

    return parse_size(text)


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Measure, print the table and the choice of `auto`, and write the JSON file."""
    from pspnet.benchmarking.benchmark import BenchmarkRequest, benchmark
    from pspnet.benchmarking.record import write_record

    names = ("model_dir", "size", "image", "runtimes", "device", "batch", "rounds", "threads")
    request = BenchmarkRequest(**{name: getattr(arguments, name) for name in names})
    record = benchmark(request, report=lambda line: print(line, flush=True), command=arguments.command_line)
    if arguments.output:
        write_record(arguments.output, record)
        print(f"Written: {arguments.output}")
    return 0
