"""Start time and memory of one inference case, measured in its own process.

    python benchmarks/support/cold_start.py --model MODEL_DIR --case eager --size 360x480

Prints one line of JSON: seconds for opening (reading the weights, building the runtime, importing packages other than
PyTorch), for the first mask and for the second; MiB at the peak and after the second mask; on a GPU also its peak.
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

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.support.cases import Subject, open_case
from pspnet.benchmarking.benchmark_request import Size
from pspnet.benchmarking.peak_memory import ask_child, current_mib, peak_mib
from pspnet.benchmarking.timed_frames import make_images, parse_size, size_text
from pspnet.system.exit_codes import run_guarded


def main(argv: Sequence[str]) -> int:
    """Run one case and print its times and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--size", type=parse_size, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_classes", type=int, default=21, help="classes of other libraries' networks")
    parser.add_argument("--gluon_python", type=Path)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    images = make_images(arguments.size, arguments.batch)
    clock = [time.perf_counter()]
    case = open_case(arguments.case, Subject(arguments.model, device, arguments.num_classes, arguments.gluon_python))
    clock.append(time.perf_counter())
    for _ in range(2):
        case.masks(images)
        clock.append(time.perf_counter())
    seconds = [round(later - earlier, 3) for earlier, later in zip(clock, clock[1:])]
    found: dict[str, Any] = dict(zip(("open_s", "first_mask_s", "second_mask_s"), seconds))
    # GluonCV runs in a separate process.
    found.update(peak_mib=getattr(case, "peak_mib", None) or peak_mib(), held_mib=current_mib())
    if device.type == "cuda":
        found["gpu_peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    print(json.dumps(found))
    return 0


def ask(model: Path, case: str, size: Size, device: str, cache: Path, **flags: object) -> dict[str, Any]:
    """Run this file for a case; PspnetError if the case fails.

    Args:
        cache: folder of compiled code and runtime choices; an empty one makes a first start.
        flags: more flags and their values.
    """
    flags = {"model": model, "case": case, "size": size_text(size), "device": device, **flags}
    command = [sys.executable, str(Path(__file__).resolve())]
    for name, value in flags.items():
        command += [] if value is None else [f"--{name}", str(value)]
    caches = {
        "PSPNET_CACHE": cache,
        "TORCHINDUCTOR_CACHE_DIR": cache / "inductor",
        "TRITON_CACHE_DIR": cache / "triton",
    }
    return ask_child(command, environment={**os.environ, **{name: str(path) for name, path in caches.items()}})


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
