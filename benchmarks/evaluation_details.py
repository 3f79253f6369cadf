"""What it costs to count confidences and boundaries of an image, beside its confusion matrix, on one core.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_details.py

Processor time in milliseconds, the least of five, on random logits and blocks of 16 px. The network itself, and
loading, are not in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# The project, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.evaluation.boundary import count_boundary
from pspnet.evaluation.calibration import confidence_of_logits, count_confidence
from pspnet.evaluation.metrics import count_by_image

CASES = ((11, 360, 480), (21, 375, 500), (150, 512, 683), (19, 1024, 2048))


def milliseconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The least processor time of an action."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def measure(classes: int, height: int, width: int) -> tuple[float, float, float]:
    """Milliseconds for the confusion matrix, the confidences and the boundaries of one image."""
    logits = 3 * torch.randn(1, classes, height, width)
    masks = logits.argmax(dim=1)
    blocks = torch.randint(0, classes, (1, height // 16 + 1, width // 16 + 1))
    targets = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width]
    mask, target = masks[0].to(torch.uint8).numpy(), targets[0].to(torch.uint8).numpy()
    return (
        milliseconds(lambda: count_by_image(masks, targets, classes)),
        milliseconds(lambda: count_confidence(confidence_of_logits(logits), masks, targets, classes)),
        milliseconds(lambda: count_boundary(mask, target, classes)),
    )


def main(argv: Sequence[str]) -> None:
    """Print a table."""
    argparse.ArgumentParser(
        prog="evaluation_details.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    torch.manual_seed(0)
    print("classes  height  width  confusion matrix  confidence  boundary  ms of one image")
    for case in CASES:
        matrix, confidence, boundary = measure(*case)
        print("{:7d}  {:6d}  {:5d}".format(*case) + f"  {matrix:16.1f}  {confidence:10.1f}  {boundary:8.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
