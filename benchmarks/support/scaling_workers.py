"""Images per second of the training channel's loader against its workers: a part of scaling.py."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pspnet.benchmarking.interleave import Timing, measure
from pspnet.benchmarking.table import markdown, milliseconds
from pspnet.data.channels import load_pairs
from pspnet.data.dataset import SegmentationDataset
from pspnet.data.loader import build_loader, load_batches
from pspnet.data.samplers import TrainBatchSampler
from pspnet.data.shapes import write_shapes
from pspnet.data.transforms import TrainTransform

_BATCH, _CROP, _BASE = 16, 240, 520
_SIZE = (500, 375)  # width and height, as most of PASCAL VOC


def measure_workers(counts: Sequence[int], images: int, rounds: int) -> dict[int, Timing]:
    """Seconds of an epoch of `images` drawn JPEG files for each number of workers, in turns.

    The workers stay between epochs, so their start is not in it. Those of the other cases wait meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="pspnet-benchmark-") as folder:
        channels = Path(folder) / "shapes"
        write_shapes(channels, train=images, validation=1, size=_SIZE)
        pairs = load_pairs(channels / "train", channels / "train_annotation")
        dataset = SegmentationDataset(pairs, 7, TrainTransform(_CROP, _BASE))
        loaders = {
            count: build_loader(dataset, TrainBatchSampler(len(pairs), _BATCH, seed=0), count, persistent=True)
            for count in counts
        }
        cases: dict[int, Callable[[], object]] = {
            count: functools.partial(_epoch, loader) for count, loader in loaders.items()
        }
        return measure(cases, rounds)


def _epoch(loader: Any) -> int:
    return sum(len(batch.names) for batch in load_batches(loader))


def record(timings: dict[int, Timing], images: int) -> list[dict[str, Any]]:
    """What the JSON file keeps."""
    return [
        {"workers": count, **timing.record(), "images_per_second": round(images / timing.median, 2)}
        for count, timing in timings.items()
    ]


def table(timings: dict[int, Timing], images: int) -> str:
    """A Markdown table, one line for each number of workers."""
    rows = [
        [count, milliseconds(timing), f"{images / timing.median:.0f}"] for count, timing in timings.items()
    ]  # fmt: skip
    return markdown(["workers", f"ms for {images} images", "images/s"], rows)
