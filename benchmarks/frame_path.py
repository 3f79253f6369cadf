"""The way of a frame from JPEG bytes to PNG bytes, stage by stage, in the eager runtime.

The stages take turns with each other and with the whole way, so each finds the caches as the others leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pspnet.benchmarking.interleave import Timing, measure
from pspnet.benchmarking.table import markdown, milliseconds, percent
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.masks.png import encode_mask
from pspnet.serving.protocol.request_image import decode_image

WHOLE = "whole"
_STAGES = ("decode", "copy", "forward", "arg-max", "back", "PNG")


def time_frame_path(runtime: EagerRuntime, body: bytes, rounds: int) -> dict[str, Timing]:
    """Times of the stages, of the runtime's own pass over them (copy to back), and of the whole way.

    Args:
        body: a JPEG file.
    """
    image = decode_image(body, "image/jpeg")
    runtime.prepare(*image.shape[:2])
    with torch.no_grad():
        return measure(_cases(runtime, body, image), rounds, warmup=2)


def _cases(runtime: EagerRuntime, body: bytes, image: np.ndarray) -> Mapping[str, Callable[[], object]]:
    device = runtime.device
    pixels = runtime.to_device(image[None])  # (1, H, W, 3)
    logits = runtime.model(pixels.permute(0, 3, 1, 2))  # (1, K, H, W)
    classes = logits.argmax(dim=1).to(torch.uint8)  # (1, H, W)
    mask = classes.cpu().numpy()[0]

    def finished(result: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    def whole() -> bytes:
        return encode_mask(runtime.masks(decode_image(body, "image/jpeg")[None])[0])

    return {
        "decode": lambda: decode_image(body, "image/jpeg"),
        "copy": lambda: finished(runtime.to_device(image[None])),
        "forward": lambda: finished(runtime.model(pixels.permute(0, 3, 1, 2))),
        "arg-max": lambda: finished(logits.argmax(dim=1).to(torch.uint8)),
        "back": lambda: classes.cpu().numpy(),
        "PNG": lambda: encode_mask(mask),
        "copy to back, the runtime's own": lambda: runtime.masks(image[None]),
        WHOLE: whole,
    }


def table(timings: Mapping[str, Timing]) -> str:
    """A Markdown table with each stage's share of the whole way."""
    whole = timings[WHOLE].median
    rows = [[name, milliseconds(timing), percent(timing.median / whole)] for name, timing in timings.items()]
    return markdown(["stage", "ms (quartiles)", "of the whole"], rows)


def record(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """What the JSON file keeps."""
    return {name: timing.record() for name, timing in timings.items()}
