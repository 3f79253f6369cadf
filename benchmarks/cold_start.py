"""One case in a process of its own: how long until its first mask, and how much memory it needs.

    python benchmarks/cold_start.py --model MODEL_DIR --case eager --size 360x480

Prints one line of JSON: seconds for opening (reading the weights, building what runs, importing other packages than
PyTorch), for the first mask and for the second; MiB at the most and after the second mask; on a GPU also the most of
its memory. The other benchmarks run this file for their columns of memory and starts, and `ask` is how.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The project and this folder's modules, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.support.cases import Subject, open_case
from pspnet.benchmarking.peak_memory import ask_child, current_mib, peak_mib
from pspnet.benchmarking.timed_frames import Size, make_images, parse_size, size_text
from pspnet.system.exit_codes import run_guarded


def main(argv: Sequence[str]) -> int:
    """Run one case and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--size", type=parse_size, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_classes", type=int, default=21, help="classes of other libraries' networks")
    parser.add_argument("--gluon_python", type=Path)
    print(json.dumps(start(parser.parse_args(argv))))
    return 0


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of the case that the arguments name."""
    device = torch.device(arguments.device)
    images = make_images(arguments.size, arguments.batch)
    clock = [time.perf_counter()]
    case = open_case(arguments.case, Subject(arguments.model, device, arguments.num_classes, arguments.gluon_python))
    clock.append(time.perf_counter())
    for _ in range(2):
        case.masks(images)
        clock.append(time.perf_counter())
    opening, first, second = (round(later - earlier, 3) for earlier, later in zip(clock, clock[1:]))
    found = {"open_s": opening, "first_mask_s": first, "second_mask_s": second}
    # Another engine runs in a process of its own.
    memory = {"peak_mib": getattr(case, "peak_mib", None) or peak_mib(), "held_mib": current_mib()}
    if device.type == "cuda":
        memory["gpu_peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return {**found, **memory}


def ask(model: Path, case: str, size: Size, device: str, cache: Path, **more: object) -> dict[str, Any]:
    """Run this file for a case; PspnetError where the case fails.

    Args:
        cache: folder for everything that is compiled or chosen once on a machine; an empty one makes a first start.
        more: further flags and their values.
    """
    flags = {"model": model, "case": case, "size": size_text(size), "device": device, **more}
    command = [sys.executable, str(Path(__file__).resolve())]
    for name, value in flags.items():
        command += [] if value is None else [f"--{name}", str(value)]
    environment = {
        "PSPNET_CACHE": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    return ask_child(command, environment={**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
