"""Cost of scoring next to the forward pass: the confusion matrix against torchmetrics, and each step of a protocol.

    python benchmarks/evaluation.py --output evaluation.json

Confusion matrix: 16 masks of 375x500 px and 21 classes in blocks of 16 px, 80 % of the pixels predicted correctly, 5 %
ignored; int64 predictions (from arg-max) and uint8. All counts are compared before anything is timed.

Steps: milliseconds per image of everything that `pspnet evaluate` does besides the forward pass, at the image sizes of
several data sets. On one core in processor time, interleaved; on a GPU (--device cuda) in wall-clock time, synced.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.benchmarking.interleave import OwnTime, Timing, measure, ratio_quartiles
from pspnet.benchmarking.record import machine_text, run_record, write_record
from pspnet.benchmarking.table import factor, markdown, milliseconds
from pspnet.evaluation.boundary import count_boundary
from pspnet.evaluation.calibration import confidence_of_logits, count_confidence
from pspnet.evaluation.metrics import count_by_image
from pspnet.system.exit_codes import run_guarded

SIZES = {
    "CamVid, 11 classes, 360x480": (11, 360, 480),
    "VOC, 21 classes, 375x500": (21, 375, 500),
    "ADE20K, 150 classes, 512x683": (150, 512, 683),
    "Cityscapes, 19 classes, 1024x2048": (19, 1024, 2048),
}


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables and write the record."""
    parser = argparse.ArgumentParser(
        prog="evaluation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=16, metavar="N", help="masks per call (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="of every case (%(default)s)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write figures, command, machine and versions")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(args.device)
    record = run_record()
    print(machine_text(record["machine"]) + "\n")
    record["confusion_matrix"] = confusion_matrices(args.masks, args.rounds, device)
    record["steps"] = {name: steps(name, *size, args.rounds, device) for name, size in SIZES.items()}
    if args.output is not None:
        write_record(args.output, record)
    return 0


def draw_masks(count: int, classes: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, H, W) int64 predictions, 80 % correct, and (N, H, W) uint8 targets in blocks, 5 % ignored."""
    blocks = torch.randint(0, classes, (count, height // 16 + 1, width // 16 + 1))
    targets = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous()
    right = torch.rand(targets.shape) < 0.8
    predictions = torch.where(right, targets, torch.randint(0, classes, targets.shape))
    targets[torch.rand(targets.shape) < 0.05] = 255
    return predictions, targets.to(torch.uint8)


def confusion_matrices(masks: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time our confusion matrix, and torchmetrics' if it is installed; prints the table."""
    predictions, targets = (part.to(device) for part in draw_masks(masks, 21, 375, 500))
    small = predictions.to(torch.uint8)
    cases: dict[str, Callable[[], torch.Tensor]] = {
        "ours, int64 predictions": lambda: count_by_image(predictions, targets, 21).sum(dim=0),
        "ours, uint8 predictions": lambda: count_by_image(small, targets, 21).sum(dim=0),
    }
    try:
        from torchmetrics.functional.classification import multiclass_confusion_matrix
    except ImportError:
        print("torchmetrics is not installed: no ratio.\n")
    else:
        # Without value checks and with int64 targets, so that only the counting is timed.
        count = partial(multiclass_confusion_matrix, num_classes=21, ignore_index=255, validate_args=False)
        wide = targets.long()
        cases["torchmetrics, int64 predictions"] = lambda: count(predictions, wide)
        cases["torchmetrics, uint8 predictions"] = lambda: count(small, wide)
    first = next(iter(cases.values()))()
    for name, case in cases.items():
        assert torch.equal(case(), first), f"{name}: different counts"
    timings = timed(cases, rounds, device)
    rows, found = [], {}
    for name, timing in timings.items():
        found[name] = timing.record()
        theirs = timings.get(name.replace("ours", "torchmetrics"))
        gain = None
        if theirs is not None and theirs is not timing:
            gain = ratio_quartiles(theirs, timing)
            found[name]["gain"] = list(gain)
        rows.append([name, milliseconds(timing), factor(gain) if gain else ""])
    headers = [f"confusion matrix of {masks} masks", "ms (quartiles)", "against torchmetrics"]
    print(markdown(headers, rows) + "\n")
    return found


def steps(name: str, classes: int, height: int, width: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time the steps around the forward pass of one image; prints the table."""
    _, targets = draw_masks(1, classes, height, width)
    coarse = 3 * torch.randn(1, classes, -(-height // 8), -(-width // 8), device=device)
    logits = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    masks, targets = logits.argmax(dim=1), targets.to(device)
    confidences = confidence_of_logits(logits)
    mask, target = masks[0].to(torch.uint8).cpu().numpy(), targets[0].cpu().numpy()
    cases: dict[str, Callable[[], object]] = {
        "logits to the image's size": lambda: F.interpolate(
            coarse, size=(height, width), mode="bilinear", align_corners=False
        ),
        "arg-max": lambda: logits.argmax(dim=1),
        "confusion matrix": lambda: count_by_image(masks, targets, classes),
        "confidences": lambda: confidence_of_logits(logits),
        "counting confidences": lambda: count_confidence(confidences, masks, targets, classes),
        "boundaries": lambda: count_boundary(mask, target, classes),
    }
    timings = timed(cases, rounds, device)
    print(markdown([name, "ms (quartiles)"], [[step, milliseconds(timing)] for step, timing in timings.items()]) + "\n")
    return {step: timing.record() for step, timing in timings.items()}


def timed(cases: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Times of the cases: processor time on a CPU, wall-clock time on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def wrapped(case: Callable[[], object]) -> OwnTime:
        start = clock()
        case()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return OwnTime(clock() - start)

    return measure({name: partial(wrapped, case) for name, case in cases.items()}, rounds)


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
