"""Speed of the training data pipeline, and of the same operations in other libraries.

    python benchmarks/data.py --output data.json

One core. Every case reads the same JPEG images and palette PNG masks, scales the long side to base_size x U(0.5, 2),
crops (padded if the image is smaller), flips half of them, and stacks 16 samples to a batch:

    ours              SegmentationDataset and collate as in training: uint8 output, normalised later on the device
    ours, normalised  the same, then converted to float32 and normalised by torch on this core, like the other cases
    ours, Pillow      ours without simplejpeg
    ours, cached      ours with the decoded pairs of `cache_images memory`
    albumentations    cv2.imread, RandomScale, PadIfNeeded, RandomCrop, HorizontalFlip, Normalize, ToTensorV2
    torchvision v2    decode_jpeg, resize, pad, crop, horizontal_flip, to_dtype and normalize of tv_tensors
    Pillow            Image.open, resize, crop and transpose, then numpy

The other libraries' masks are read with Pillow, since their own readers convert palettes to colours. The cases are
interleaved and timed in processor time, so that other programs disturb little; ratios are medians over the rounds.

Stages: processor time of the parts of one of our samples.

Loader: images per second in wall-clock time with 0, 1 and 2 workers, without a cache and with both kinds of it, filled.

The images are synthetic scenes of 500x375 px, as JPEG files of about 50 kB (VOC's size), or those of a data set:
--data DIR, with train/, train_annotation/ and --num_classes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

# One thread for every library, as in a loader worker.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import torch
from PIL import Image

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support.pipelines import PIPELINES, Sample, normalise
from pspnet.benchmarking.interleave import OwnTime, measure, ratio_quartiles
from pspnet.benchmarking.record import machine_text, run_record, write_record
from pspnet.benchmarking.table import factor, markdown
from pspnet.classes import SHAPES_CLASSES, palette_for
from pspnet.data.cache.cache_folder import open_cache
from pspnet.data.channels import Pair, load_pairs
from pspnet.data.dataset import SegmentationDataset, to_class_ids
from pspnet.data.io import jpeg
from pspnet.data.io.images import encode_palette_png, read_annotation, read_image
from pspnet.data.loader import Batch, build_loader, collate, load_batches
from pspnet.data.samplers import TrainBatchSampler
from pspnet.data.shapes import draw_scene
from pspnet.data.transforms import TrainTransform
from pspnet.system.exit_codes import run_guarded

BATCH = 16


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables and write the record."""
    args = parse(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pspnet-data-") as folder:
        if args.data is None:
            draw_channel(Path(folder), args.images)
        source = Path(folder) if args.data is None else args.data
        pairs = load_pairs(source / "train", source / "train_annotation")[: args.images]
        record = run_record()
        print(f"{machine_text(record['machine'])}\n{len(pairs)} images, crop {args.crop_size}, base {args.base_size}\n")
        record["chains"] = chains(pairs, args)
        record["stages_ms"] = stages(pairs, args)
        record["loader"] = loaders(pairs, args, Path(folder)) if args.loader_images else {}
    if args.output is not None:
        write_record(args.output, record)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="data set folder (default: synthetic scenes)")
    add("--num_classes", type=int, default=len(SHAPES_CLASSES), metavar="N", help="of --data")
    add("--images", type=int, default=48, metavar="N", help="different images (%(default)s)")
    add("--crop_size", type=int, default=240, metavar="PX", help="side of the crop (%(default)s)")
    add("--base_size", type=int, default=520, metavar="PX", help="long side (%(default)s)")
    add("--rounds", type=int, default=40, metavar="N", help="batches of each case (%(default)s)")
    add("--cases", default="", metavar="A,B", help="only these cases (default: all that are installed)")
    add("--workers", default="0,1,2", metavar="N,N", help="for the loader (%(default)s)")
    add("--loader_images", type=int, default=960, metavar="N", help="images per loader epoch; 0: skip (%(default)s)")
    add("--output", type=Path, metavar="FILE", help="write figures, command, machine and versions")
    return parser.parse_args(argv)


def draw_channel(folder: Path, count: int) -> None:
    """Write synthetic scenes of the size of a VOC photograph, compressed to about its bytes."""
    for name in ("train", "train_annotation"):
        (folder / name).mkdir()
    for index in range(count):
        image, mask = draw_scene(np.random.default_rng([7, index]), (500, 375))
        Image.fromarray(image).save(folder / "train" / f"{index:04d}.jpg", quality=92)
        encode_palette_png(mask, palette_for(SHAPES_CLASSES)).save(folder / "train_annotation" / f"{index:04d}.png")


def dataset(pairs: list[Pair], args: argparse.Namespace, **options: Any) -> SegmentationDataset:
    """Our data set with the default augmentation."""
    return SegmentationDataset(pairs, args.num_classes, TrainTransform(args.crop_size, args.base_size), **options)


def chains(pairs: list[Pair], args: argparse.Namespace) -> dict[str, Any]:
    """Processor time of a batch in each case; prints images per second and the ratio to albumentations."""
    plain = dataset(pairs, args)
    cases: dict[str, Callable[[int], object]] = {
        "ours": lambda number: ours(plain, number),
        "ours, normalised": lambda number: normalise(ours(plain, number).images),
        "ours, Pillow": lambda number: without_simplejpeg(plain, number),
    }
    if Path("/dev/shm").is_dir():
        cache = open_cache("memory", 1.0, "", announce=False)
        assert cache is not None
        cached = dataset(pairs, args, cache=cache)
        for index in range(len(pairs)):
            cached[(0, index)]
        if all(cache.read(pair) is not None for pair in pairs):
            cases["ours, cached"] = lambda number: ours(cached, number)
        else:
            print(f"ours, cached is left out: {cache.folder} has no room for all images.\n")
    for name, build in PIPELINES.items():
        sample = build(args.crop_size, args.base_size)
        if sample is not None:
            cases[name] = partial(theirs, sample, pairs)
    if args.cases:
        cases = {name: cases[name] for name in args.cases.split(",")}
    timings = measure({name: by_number(case) for name, case in cases.items()}, args.rounds)
    rows, found = [], {}
    reference = timings.get("albumentations")
    for name, timing in timings.items():
        lower, median, upper = (BATCH / value for value in timing.quartiles)
        found[name] = {"images_per_second": median, **timing.record()}
        row = [name, f"{median:.0f} ({upper:.0f} to {lower:.0f})", ""]
        if reference is not None:
            gain = ratio_quartiles(reference, timing)
            found[name]["gain"] = list(gain)
            row[2] = factor(gain)
        rows.append(row)
    print(markdown(["one core", "images/s (quartiles)", "against albumentations"], rows) + "\n")
    return found


def counted(action: Callable[[], object]) -> Callable[[], OwnTime]:
    """Wrap an action so that it measures its own processor time."""

    def call() -> OwnTime:
        start = time.process_time()
        action()
        return OwnTime(time.process_time() - start)

    return call


def by_number(case: Callable[[int], object]) -> Callable[[], OwnTime]:
    """Wrap a case so that it measures its own processor time and makes another batch at every call."""
    numbers = itertools.count()
    return counted(lambda: case(next(numbers)))


def ours(data: SegmentationDataset, number: int) -> Batch:
    """One batch of ours; the samples differ between batches and are the same for all our cases."""
    first = number * BATCH
    batch = collate([data[(first // len(data), index % len(data))] for index in range(first, first + BATCH)])
    assert isinstance(batch, Batch), batch
    return batch


def without_simplejpeg(data: SegmentationDataset, number: int) -> Batch:
    """One batch of ours, as if simplejpeg were not installed."""
    with mock.patch.object(jpeg, "simplejpeg", None):
        return ours(data, number)


def theirs(sample: Sample, pairs: list[Pair], number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of another library."""
    rng = np.random.default_rng([number])
    samples = [sample(pairs[index % len(pairs)], rng) for index in range(number * BATCH, (number + 1) * BATCH)]
    return torch.stack([image for image, _ in samples]), torch.stack([mask for _, mask in samples])


def stages(pairs: list[Pair], args: argparse.Namespace) -> dict[str, float]:
    """Processor time in ms of each part of a sample: mean over the images, median over the rounds."""
    decoded = [(read_image(pair.image), read_annotation(pair.annotation)) for pair in pairs]
    bodies = [pair.image.read_bytes() for pair in pairs]
    plain = TrainTransform(args.crop_size, args.base_size)
    full = TrainTransform(args.crop_size, args.base_size, rotation=10.0, blur=0.5, color_jitter=0.4)
    rng = np.random.default_rng(0)
    data = dataset(pairs, args)
    samples = [data[(0, index % len(pairs))] for index in range(BATCH)]
    parts: dict[str, Callable[[], object]] = {
        "read the image's file": lambda: [pair.image.read_bytes() for pair in pairs],
        "decode the image: simplejpeg": lambda: [jpeg.decode_rgb(body) for body in bodies],
        "decode the image: Pillow": lambda: [
            np.asarray(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies
        ],
        "read and decode the mask": lambda: [read_annotation(pair.annotation) for pair in pairs],
        "check the class ids": lambda: [
            to_class_ids(mask, pair.annotation, args.num_classes) for pair, (_, mask) in zip(pairs, decoded)
        ],
        "window: scale, crop, flip": lambda: [plain(image, mask, rng) for image, mask in decoded],
        "window, rotation, blur, colour": lambda: [full(image, mask, rng) for image, mask in decoded],
        "collate": lambda: collate(samples),
    }
    timings = measure({name: counted(part) for name, part in parts.items()}, rounds=10)
    found = {name: 1000 * timing.median / len(pairs) for name, timing in timings.items()}
    found["collate"] *= len(pairs) / BATCH
    print(markdown(["part of a sample", "ms"], [[name, f"{value:.3f}"] for name, value in found.items()]) + "\n")
    return found


def loaders(pairs: list[Pair], args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Images per second of full epochs in wall-clock time, with started workers and filled caches."""
    found: dict[str, dict[str, float]] = {}
    many = (pairs * -(-args.loader_images // len(pairs)))[: args.loader_images]
    workers = [int(text) for text in args.workers.split(",")]
    for kind in ("none", "memory", "disk"):
        if kind == "memory" and not Path("/dev/shm").is_dir():
            continue
        cache = open_cache(kind, 2.0, str(folder / "cache"), announce=False)
        found[kind] = {str(count): epoch_rate(dataset(many, args, cache=cache), count) for count in workers}
    rows = [[kind, *(f"{rate:.0f}" for rate in rates.values())] for kind, rates in found.items()]
    print(markdown(["images/s, cache_images", *(f"{count} workers" for count in workers)], rows))
    return found


def epoch_rate(data: SegmentationDataset, workers: int, epochs: int = 3) -> float:
    """Median rate of the epochs after a warm-up epoch."""
    sampler = TrainBatchSampler(len(data), BATCH, seed=0)
    loader = build_loader(data, sampler, workers, persistent=True)
    rates = []
    for epoch in range(epochs + 1):
        sampler.set_position(epoch, 0)
        start = time.perf_counter()
        images = sum(len(batch.names) for batch in load_batches(loader))
        rates.append(images / (time.perf_counter() - start))
    return float(np.median(rates[1:]))


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
