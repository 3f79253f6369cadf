"""`pspnet evaluate`: score a model on images with annotations."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pspnet.cli_model import add_model_arguments, make_folder
from pspnet.data.channels import load_pairs
from pspnet.errors import DataError
from pspnet.files import replacing


def register(subparsers: Any) -> None:
    """Add `evaluate` to the parser of `pspnet`."""
    parser = subparsers.add_parser("evaluate", help="score a model on images with annotations")
    add_model_arguments(parser)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of JPEG or PNG images")
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="folder of PNG annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets metrics.json")
    parser.add_argument(
        "--label_map", "--label-map", type=Path, metavar="FILE", help="JSON file: pixel value to class id"
    )
    parser.add_argument(
        "--ignore", type=int, default=255, metavar="ID", help="class id that is not scored (default: 255)"
    )
    parser.add_argument("--batch_size", "--batch-size", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--workers", default="auto", help="processes that load images (default: auto)")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Score every image at its own size; writes metrics.json and prints a table."""
    from pspnet.classes import load_label_map
    from pspnet.data.dataset import EvaluationBatchSampler, SegmentationDataset, build_loader, image_sizes, load_batches
    from pspnet.evaluation.metrics import constant_scores
    from pspnet.evaluation.protocols import evaluate_whole
    from pspnet.evaluation.report import format_scores
    from pspnet.serving.artifact import load_artifact
    from pspnet.training.device import choose_device, choose_precision, choose_workers

    if arguments.batch_size < 1:
        raise DataError(f"--batch_size: found {arguments.batch_size}; expected at least 1.")
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    pairs = load_pairs(arguments.images, arguments.annotations, "evaluation")
    label_map = None if arguments.label_map is None else load_label_map(arguments.label_map)
    make_folder(arguments.output)
    artifact = load_artifact(arguments.model_dir)
    num_classes = len(artifact.class_names)
    dataset = SegmentationDataset(pairs, num_classes, None, label_map, arguments.ignore)
    sampler = EvaluationBatchSampler(image_sizes(pairs), arguments.batch_size)
    loader = build_loader(dataset, sampler, choose_workers(_workers(arguments.workers), device), device.type == "cuda")
    batches = tqdm(load_batches(loader), total=len(sampler), unit="batch", disable=not sys.stderr.isatty())
    confusion = evaluate_whole(
        artifact.model.to(device), batches, num_classes, device, precision.autocast_dtype, channels_last=True
    )
    scores = confusion.scores()
    report = {**scores.to_json(artifact.class_names), "images": len(pairs)}
    with replacing(arguments.output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    constant = constant_scores(confusion.counts.cpu().numpy())
    print(format_scores(scores, artifact.class_names, len(pairs)))
    print(
        f"Always answering the commonest class would score mIoU {100 * constant.mIOU:.1f} and pixel accuracy "
        f"{100 * constant.pixel_accuracy:.1f}."
    )
    print(f"Written: {arguments.output / 'metrics.json'}")
    return 0


def _workers(text: str) -> str | int:
    if text == "auto":
        return text
    if text.isdigit():
        return int(text)
    raise DataError(f"--workers: found {text!r}; expected auto or a whole number, 0 or more.")
