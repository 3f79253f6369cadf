"""GluonCV's PSPNet-ResNet50 on MXNet, the engine of the built-in algorithm, timed in a separate process.

    python gluoncv_child.py CLASSES

Runs under Python 3.8 with mxnet 1.9.1 and gluoncv 0.10.5.post0, so it imports nothing of the project. For each line
"HEIGHT WIDTH" and the bytes of an (H, W, 3) uint8 image on standard input it writes one line of JSON: the seconds from
image to class ids, the number of pixels, and its peak memory. Random weights: the time does not depend on them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Optional

import mxnet as mx
import numpy as np
from gluoncv.model_zoo import PSPNet

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def build(classes: int) -> Any:
    """The hybridised network: MXNet runs whole blocks as graphs."""
    network = PSPNet(classes, backbone="resnet50", pretrained_base=False, crop_size=240)
    network.initialize(mx.init.MSRAPrelu(), force_reinit=True)
    network.hybridize(static_alloc=True)
    return network


def mask(network: Any, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8 class ids; normalisation and arg-max run in MXNet too."""
    mean, std = (mx.nd.array(np.reshape(values, (1, 3, 1, 1))) for values in (MEAN, STD))
    x = mx.nd.array(pixels.transpose(2, 0, 1)[None], dtype="uint8").astype("float32")
    logits = network.predict((x - mean) / std)
    found: np.ndarray = mx.nd.argmax(logits, axis=1).astype("uint8").asnumpy()[0]
    return found


def peak_mib() -> Optional[float]:
    """Peak memory of this process in MiB; None on systems other than Linux."""
    path = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return round(int(found.group(1)) / 2**10, 1) if found else None


def main() -> None:
    """Answer requests until standard input ends."""
    # Output of the libraries goes to standard error, away from the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    network = build(int(sys.argv[1]))
    while True:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        height, width = (int(part) for part in line.split())
        pixels = np.frombuffer(sys.stdin.buffer.read(3 * height * width), np.uint8).reshape(height, width, 3)
        start = time.perf_counter()
        found = mask(network, pixels)
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "pixels": int(found.size), "peak_mib": peak_mib()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
