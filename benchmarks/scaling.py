"""How the cost grows: with the size of the image, the batch, the classes, the loader's workers, and processes.

    python benchmarks/scaling.py --output scaling.json
    python benchmarks/plot.py scaling.json docs/scaling.svg

The network's parts time `ours` (the eager runtime) beside `plain` (the published form, eager, float32), with random
weights at full width, arg-max included. `workers` is the training channel's loader: 500x375 JPEG files, crops of 240,
images per second once the workers run. `processes` are copies of the eager runtime at 240x240 that share the cores.
Within a part all cases take turns in rounds. --memory starts ours in a process of its own for each point.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# The project and this folder's modules, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support import scaling_network, scaling_processes, scaling_workers
from benchmarks.support.small_model import random_model
from pspnet.benchmarking.peak import measure_peak
from pspnet.benchmarking.record import machine_text, run_record, write_record
from pspnet.system.cpu import available_cores
from pspnet.system.device import choose_device
from pspnet.system.exit_codes import run_guarded

PARTS = (*scaling_network.POINTS, "workers", "processes")
_WORKERS = (0, 1, 2, 4, 8)
_FRAME = (240, 240)


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables, write the JSON file."""
    arguments = parse(argv)
    device = choose_device(arguments.device)
    peak = measure_peak(device.type)
    found: dict[str, Any] = {"benchmark": "scaling", **run_record(), "settings": _settings(arguments, device)}
    found.update(peak_gflop_per_second=round(peak / 1e9, 1))
    print(f"{machine_text(found['machine'])}; a large matrix product: {peak / 1e9:.0f} GFLOP/s in float32", flush=True)
    for part in arguments.parts:
        print(f"\nCost against {part}, {arguments.rounds} rounds\n")
        if part == "workers":
            found[part] = _workers(arguments)
        elif part == "processes":
            found[part] = _processes(arguments)
        else:
            found[part] = _points(part, arguments, device, peak)
    if arguments.output:
        write_record(arguments.output, found)
        print(f"\nWritten: {arguments.output}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--width", type=int, default=64, help="of the network; 4 is tiny (default: %(default)s)")
    add("--images", type=int, default=128, help="of the part workers (default: %(default)s)")
    add("--masks", type=int, default=4, help="of each process in a round (default: %(default)s)")
    add("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="of the network parts (default: %(default)s)")
    add("--memory", action="store_true", help="also start ours in its own process for each point")
    add("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    for name in ("rounds", "images", "masks"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: found {getattr(arguments, name)}; expected 1 or more")
    return arguments


def _settings(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    threads = torch.get_num_threads()
    return {"rounds": arguments.rounds, "width": arguments.width, "device": device.type, "threads": threads}


def _points(part: str, arguments: argparse.Namespace, device: torch.device, peak: float) -> list[dict[str, Any]]:
    points = scaling_network.POINTS[part]
    costs = scaling_network.measure_points(points, device, arguments.rounds, arguments.width, arguments.memory)
    print(scaling_network.table(part, costs, peak), flush=True)
    return [cost.record(peak) for cost in costs]


def _workers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    counts = [count for count in _WORKERS if count <= available_cores()]
    timings = scaling_workers.measure_workers(counts, arguments.images, arguments.rounds)
    print(scaling_workers.table(timings, arguments.images), flush=True)
    return scaling_workers.record(timings, arguments.images)


def _processes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One process with all cores, one with one core, and two that share them."""
    cores = available_cores()
    sharings = list(dict.fromkeys([(1, cores), (1, 1), (2, max(1, cores // 2))]))
    with random_model(width=arguments.width) as folder:
        found = scaling_processes.measure_processes(folder, _FRAME, sharings, arguments.masks, arguments.rounds)
    print(scaling_processes.table(found), flush=True)
    return [sharing.record() for sharing in found]


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
