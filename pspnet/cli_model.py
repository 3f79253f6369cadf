"""`pspnet predict`: masks of images. What the commands that use a model directory share."""

from __future__ import annotations

import argparse
import glob
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pspnet.data.channels import list_files
from pspnet.data.images import IMAGE_SUFFIXES, read_image, write_image, write_palette_png
from pspnet.errors import DataError, PspnetError


def register(subparsers: Any) -> None:
    """Add `predict` to the parser of `pspnet`."""
    parser = subparsers.add_parser("predict", help="write the masks of images")
    add_model_arguments(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets <name>.png of every image")
    parser.add_argument("--overlay", action="store_true", help="also write <name>_overlay.jpg")
    parser.set_defaults(run=run_predict)


def add_model_arguments(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """The model directory (which may be left out where `optional`), the device and the number format."""
    parser.add_argument(
        "model_dir",
        metavar="MODEL_DIR",
        type=Path,
        nargs="?" if optional else None,
        help="what training wrote to model_dir",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="number format of the network; auto by device (default: float32)",
    )


def run_predict(arguments: argparse.Namespace) -> int:
    """Write palette PNG masks. An image that can't be used is named and passed over; the exit code is then 1."""
    from pspnet.evaluation.report import overlay
    from pspnet.serving.predictor import Predictor
    from pspnet.training.device import choose_device, choose_precision

    paths = find_images(arguments.images)
    make_folder(arguments.output)
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


def find_images(arguments: list[str]) -> list[Path]:
    """Files, the images directly in folders, and matches of patterns, in that order; DataError for what is not there
    and for two images whose masks would have the same name."""
    paths: list[Path] = []
    for text in arguments:
        path = Path(text)
        if path.is_dir():
            found = list_files(path, IMAGE_SUFFIXES, "images")
        elif path.is_file():
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(text)) if Path(match).suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise DataError(f"{text}: no such image file, and no image found there ({', '.join(IMAGE_SUFFIXES)}).")
        paths += found
    paths = list(dict.fromkeys(paths))
    doubled = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if doubled:
        same = ", ".join(str(path) for path in paths if path.stem == doubled[0])
        raise DataError(
            f"{same}: their masks would all be named {doubled[0]}.png; predict them into different folders."
        )
    return paths


def make_folder(folder: Path) -> None:
    """Make the output folder; DataError where that can't be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--output: {folder} cannot be made ({error.strerror or error}); give another folder."
        ) from error
