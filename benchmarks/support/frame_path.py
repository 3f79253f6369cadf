"""Times of a frame's stages from JPEG bytes to PNG bytes in the eager runtime.

The stages are interleaved with each other and with the end-to-end path, so caches are as the other stages leave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pspnet.benchmarking.interleave import Timing, measure
from pspnet.benchmarking.table import markdown, milliseconds, percent
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.masks.png import encode_mask
from pspnet.serving.protocol.request_image import decode_image

WHOLE = "whole"


@torch.no_grad()
def time_frame_path(runtime: EagerRuntime, body: bytes, rounds: int) -> dict[str, Timing]:
    """Times of the stages, of the runtime's own pass over copy to back, and of the end-to-end path.

    Args:
        body: a JPEG file.
    """
    image = decode_image(body, "image/jpeg")
    runtime.prepare(*image.shape[:2])
    pixels = runtime.to_device(image[None])  # (1, H, W, 3)
    logits = runtime.model(pixels.permute(0, 3, 1, 2))  # (1, K, H, W)
    classes = logits.argmax(dim=1).to(torch.uint8)  # (1, H, W)
    mask = classes.cpu().numpy()[0]

    def finished(result: Any) -> Any:
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        return result

    cases = {
        "decode": lambda: decode_image(body, "image/jpeg"),
        "copy": lambda: finished(runtime.to_device(image[None])),
        "forward": lambda: finished(runtime.model(pixels.permute(0, 3, 1, 2))),
        "arg-max": lambda: finished(logits.argmax(dim=1).to(torch.uint8)),
        "back": lambda: classes.cpu().numpy(),
        "PNG": lambda: encode_mask(mask),
        "copy to back, the runtime's own": lambda: runtime.masks(image[None]),
        WHOLE: lambda: encode_mask(runtime.masks(decode_image(body, "image/jpeg")[None])[0]),
    }
    return measure(cases, rounds, warmup=2)


def table(timings: Mapping[str, Timing]) -> str:
    """A Markdown table with each stage's fraction of the end-to-end time."""
    whole = timings[WHOLE].median
    rows = [[name, milliseconds(timing), percent(timing.median / whole)] for name, timing in timings.items()]
    return markdown(["stage", "ms (quartiles)", "of the whole"], rows)
