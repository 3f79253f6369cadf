"""`pspnet evaluate` and `pspnet predict`: use a model directory."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pspnet.data.channels import load_pairs
from pspnet.data.images import read_image, write_image, write_palette_png
from pspnet.data.inputs import find_images
from pspnet.errors import DataError, PspnetError
from pspnet.files import replacing


def register(subparsers: Any) -> None:
    """Add both commands to the parser of `pspnet`."""
    _register_evaluate(subparsers)
    _register_predict(subparsers)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="what training wrote to model_dir")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="number format of the network; auto by device (default: float32)",
    )


def _register_evaluate(subparsers: Any) -> None:
    parser = subparsers.add_parser("evaluate", help="score a model on images with annotations")
    _add_model_arguments(parser)
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
    _make_folder(arguments.output)
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


def _register_predict(subparsers: Any) -> None:
    parser = subparsers.add_parser("predict", help="write the masks of images")
    _add_model_arguments(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets <name>.png of every image")
    parser.add_argument("--overlay", action="store_true", help="also write <name>_overlay.jpg")
    parser.set_defaults(run=run_predict)


def run_predict(arguments: argparse.Namespace) -> int:
    """Write palette PNG masks. An image that can't be used is named and passed over; the exit code is then 1."""
    from pspnet.evaluation.report import overlay
    from pspnet.serving.predictor import Predictor
    from pspnet.training.device import choose_device, choose_precision

    paths = find_images(arguments.images)
    _make_folder(arguments.output)
    device = choose_device(arguments.device)
    predictor = Predictor.load(arguments.model_dir, str(device))
    predictor.autocast_dtype = choose_precision(arguments.precision, device).autocast_dtype
    failed = 0
    for path in tqdm(paths, unit="image", disable=len(paths) < 2 or not sys.stderr.isatty()):
        try:
            image = read_image(path)
            mask = predictor(image)
        except PspnetError as error:
            text = str(error) if str(path) in str(error) else f"{path}: {error}"
            print(f"error: {text}", file=sys.stderr)
            failed += 1
            continue
        write_palette_png(arguments.output / f"{path.stem}.png", mask, predictor.palette)
        if arguments.overlay:
            picture = Image.fromarray(overlay(image, mask, predictor.palette))
            write_image(arguments.output / f"{path.stem}_overlay.jpg", picture, quality=90)
    print(f"{len(paths) - failed} masks in {arguments.output}" + (f", {failed} images failed" if failed else ""))
    return 1 if failed else 0


def _workers(text: str) -> str | int:
    if text == "auto":
        return text
    if text.isdigit():
        return int(text)
    raise DataError(f"--workers: found {text!r}; expected auto or a whole number, 0 or more.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--output: {folder} cannot be made ({error.strerror or error}); give another folder."
        ) from error
