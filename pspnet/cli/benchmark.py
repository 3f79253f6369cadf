"""`pspnet benchmark`: inference speed of the runtimes on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pspnet.benchmarking.benchmark_request import BenchmarkRequest
from pspnet.config.command_line import parse_settings

_DESCRIPTION = """\
Time the runtimes of a model, or of a full-size PSPNet with random weights, against `plain`: the same weights in the
network's published form, in PyTorch without compiling, float32. Timed from the image in memory to its class ids in
memory. The runtimes are interleaved, so that a change of the machine's speed affects all of them.
docs/benchmarks.md explains the table."""


def benchmark_command(argv: Sequence[str]) -> int:
    """Measure, print the table and the choice of `auto`, and write the JSON file."""
    request = parse_settings(BenchmarkRequest, argv, "pspnet benchmark", _DESCRIPTION)
    # Imported here, so that --help and wrong settings respond without importing torch.
    from pspnet.benchmarking.benchmark import benchmark
    from pspnet.benchmarking.record import write_record

    command = shlex.join(["pspnet", "benchmark", *argv])
    record = benchmark(request, report=lambda line: print(line, flush=True), command=command)
    if request.output:
        write_record(request.output, record)
        print(f"Written: {request.output}")
    return 0
