"""Speed of an endpoint: `pspnet serve` and SageMaker's inference toolkit over the same model directory.

    python benchmarks/endpoint.py --toolkit_python PYTHON --output endpoint.json

Three parts. Overhead: serial requests on one connection; the HTTP time of each minus the predictor's own time, which
the host reports in the Server-Timing header (`pspnet serve` itself, the toolkit through timed_handlers.py). Decoding
the JPEG, encoding the mask, HTTP and the host's own work count, the forward pass does not. The hosts are interleaved in
changing order. Load: throughput, latency and memory for several numbers of clients. Soak (--soak MINUTES): steady load
of mixed requests while the memory of the host's processes is sampled. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support import hosts, soak
from benchmarks.support.cases import random_model
from benchmarks.support.load import Sent, Times, Wire, run_load, send_serially, summary
from pspnet.artifact.bundle import write_code
from pspnet.artifact.file_names import CONFIG_NAME, WEIGHTS_NAME
from pspnet.benchmarking import record
from pspnet.benchmarking.table import markdown
from pspnet.benchmarking.timed_frames import jpeg, make_images
from pspnet.system.cpu import available_cores

HOSTS = ("serve", "toolkit")
_TIMED = "timed_handlers.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file. Returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "toolkit" in arguments.hosts and arguments.toolkit_python is None:
        parser.error("the toolkit needs --toolkit_python or PSPNET_TOOLKIT_PYTHON; or measure --hosts serve alone")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pspnet-endpoint-")))
        model = arguments.model or stack.enter_context(random_model(width=arguments.width))
        try:
            found = _measure(arguments, model, folder)
        except (hosts.HostError, ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if arguments.output:
        record.write_record(arguments.output, found)
        print(f"\nWritten: {arguments.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, help="model directory; by default PSPNet-R50 with 21 classes and random weights")
    add("--width", type=int, default=64, help="width of the generated model; 4 is tiny")
    add("--image", type=Path, help="JPEG file to send; by default a synthetic scene of --size")
    add("--size", type=_size, default=(480, 360), metavar="WxH", help="size of the synthetic scene (480x360)")
    add("--hosts", type=_host_names, default=HOSTS, help="serve, toolkit or both: serve,toolkit")
    add("--toolkit_python", type=Path, default=os.environ.get("PSPNET_TOOLKIT_PYTHON"), help="its interpreter")
    add("--requests", type=int, default=50, help="requests of each host in each round (50)")
    add("--rounds", type=int, default=5, help="rounds of the overhead part (5); 0 skips it")
    add("--clients", type=_numbers, default=(1, 2, 4, 8, 16), help="concurrent clients: 1,2,4,8,16; 0 skips this part")
    add("--seconds", type=float, default=20.0, help="length of each step of the load part (20)")
    add("--soak", type=float, default=0.0, metavar="MINUTES", help="length of the soak of each host (0: none)")
    add("--workers", type=int, default=1, help="processes of each host that hold the model (1)")
    add("--threads", type=int, help="CPU threads of each worker (cores / workers)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _measure(arguments: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    threads = arguments.threads or max(1, available_cores() // arguments.workers)
    model_dir = _model_directory(model, folder)
    body = arguments.image.read_bytes() if arguments.image else scene(arguments.size)
    with Image.open(io.BytesIO(body)) as image:
        dimensions = f"{image.width}x{image.height}"
    found: dict[str, Any] = record.run_record()
    found["settings"] = {
        "model": str(arguments.model or f"PSPNet-R50, 21 classes, width {arguments.width}, random weights"),
        "image": f"{dimensions} JPEG of {len(body):,} bytes",
        "workers": arguments.workers,
        "threads": threads,
        "requests": arguments.requests,
        "rounds": arguments.rounds,
    }
    found["versions"] = {"serve": record.versions()}
    if "toolkit" in arguments.hosts:
        found["versions"]["toolkit"] = record.versions(arguments.toolkit_python)
    print(json.dumps(found, indent=1), flush=True)
    sent = Sent(body)
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(_host(name, arguments, model_dir, folder / name, threads)) for name in arguments.hosts
        ]
        for host in running:
            host.wait_ready(body, sent.content_type)
        if arguments.rounds:
            found["overhead"] = _overhead(running, sent, arguments.rounds, arguments.requests)
        if any(arguments.clients):
            found["load"] = _load(running, sent, arguments.clients, arguments.seconds)
        if arguments.soak:
            found["soak"] = {host.name: soak.run(host, body, 60 * arguments.soak) for host in running}
    return found


@contextlib.contextmanager
def _host(
    name: str, arguments: argparse.Namespace, model_dir: Path, folder: Path, threads: int
) -> Iterator[hosts.Host]:
    workers = arguments.workers
    if name == "serve":
        with hosts.serve(model_dir, folder, workers, ["--threads", str(threads)]) as host:
            yield host
        return
    environment = {"SAGEMAKER_PROGRAM": _TIMED, "OMP_NUM_THREADS": str(threads)}
    with hosts.toolkit(model_dir, folder, arguments.toolkit_python, workers, environment) as host:
        yield host


def _in_order(running: Sequence[hosts.Host], number: int) -> Sequence[hosts.Host]:
    """The hosts in an order that alternates, so that a change of the machine's speed affects all of them."""
    return running if number % 2 == 0 else list(reversed(running))


def _overhead(running: Sequence[hosts.Host], sent: Sent, rounds: int, requests: int) -> dict[str, Any]:
    times = {host.name: Times() for host in running}
    medians: dict[str, list[float]] = {host.name: [] for host in running}
    for number in range(rounds):
        for host in _in_order(running, number):
            with Wire(host.port) as wire:
                send_serially(wire, sent, min(5, requests), Times())  # warm-up: the caches hold another host's data
                send_serially(wire, sent, requests, times[host.name])
            medians[host.name].append(round(float(np.median(times[host.name].overhead[-requests:])), 3))
    found, rows = {}, []
    for name, each in times.items():
        stages = {stage: summary(values) for stage, values in each.stages.items()}
        whole, overhead = summary(each.total), summary(each.overhead)
        found[name] = {
            "overhead_ms": overhead,
            "whole_ms": whole,
            "stages_ms": stages,
            "median_of_each_round_ms": medians[name],
            "requests": len(each.total),
        }
        figures = [overhead[key] for key in ("median", "p90", "p99")] + [whole["median"], stages["predict"]["median"]]
        rows.append([name, *(f"{value:.2f}" for value in figures), medians[name]])
    print("\nOverhead of a request in ms: HTTP time minus the predictor's own, one connection\n")
    print(markdown(["host", "median", "p90", "p99", "whole", "predict", "medians of the rounds"], rows), flush=True)
    return found


def _load(running: Sequence[hosts.Host], sent: Sent, clients: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    found, rows = [], []
    for index, count in enumerate(number for number in clients if number):
        for host in _in_order(running, index):
            seen = run_load(host, count, seconds, lambda _: sent)
            latency = summary(seen.milliseconds)
            rate = round(len(seen.milliseconds) / seen.seconds, 3)
            mib = round(sum(map(hosts.memory_of, host.processes())) / 2**20)
            statuses = {str(status): number for status, number in sorted(seen.statuses.items())}
            entry = {"clients": count, "host": host.name, "images_per_second": rate, "mib": mib}
            found.append({**entry, "latency_ms": latency, "statuses": statuses})
            rows.append([count, host.name, rate, latency.get("median", ""), latency.get("p99", ""), mib, statuses])
    print("\nThroughput, latency and memory by concurrent clients\n")
    print(markdown(["clients", "host", "images/s", "median ms", "p99 ms", "MiB", "statuses"], rows), flush=True)
    return found


def _model_directory(model: Path, folder: Path) -> Path:
    """A model directory with this checkout's code and the timed handlers; weights and config are links."""
    target = folder / "model"
    target.mkdir()
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        (target / name).symlink_to((model / name).resolve(strict=True))
    code = write_code(target)
    shutil.copyfile(Path(__file__).parent / "support" / _TIMED, code / _TIMED)
    return target


def scene(size: tuple[int, int]) -> bytes:
    """A JPEG file of a synthetic scene; `size` is (width, height)."""
    return jpeg(make_images((size[1], size[0]))[0])


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.lower().split("x"))
    return width, height


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _host_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(HOSTS):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected serve, toolkit or serve,toolkit")
    return names


if __name__ == "__main__":
    sys.exit(main())
