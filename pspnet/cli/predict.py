"""`pspnet predict`: masks of images. Also the arguments of every command that takes a model directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pspnet.data.inputs import find_images
from pspnet.inference.runtimes.base import AUTO, NAMES
from pspnet.system.atomic_folders import make_output_folder


def register(subparsers: Any) -> None:
    """Add `predict` to the parser of `pspnet`."""
    parser = subparsers.add_parser("predict", help="write the masks of images")
    add_model_arguments(parser, precision="auto")
    parser.add_argument(
        "--runtime", default="auto", choices=NAMES, help="runtime of the network, see docs/runtimes.md (default: auto)"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the masks")
    parser.add_argument("--overlay", action="store_true", help="also write <name>_overlay.jpg")
    parser.set_defaults(run=run_predict)


def add_model_arguments(parser: argparse.ArgumentParser, optional: bool = False, precision: str = "float32") -> None:
    """Add the model directory (which may be omitted if `optional`), the device and the precision."""
    parser.add_argument(
        "model_dir",
        metavar="MODEL_DIR",
        type=Path,
        nargs="?" if optional else None,
        help="model directory, as training writes it",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument(
        "--precision",
        default=precision,
        choices=["auto", "float32", "bfloat16", "float16"],
        help=f"precision of the network; auto chooses by device (default: {precision})",
    )


def run_predict(arguments: argparse.Namespace) -> int:
    """Write palette PNG masks. Report and skip an image that cannot be used; the exit code is then 1."""
    from pspnet.inference.predict import write_predictions
    from pspnet.inference.predictor import Predictor
    from pspnet.system.device import choose_device
    from pspnet.system.precision import choose_precision

    paths = find_images(arguments.images)
    make_output_folder(arguments.output)
    device = choose_device(arguments.device)
    dtype = None if arguments.precision == AUTO else choose_precision(arguments.precision, device).dtype
    predictor = Predictor.load(arguments.model_dir, str(device), dtype=dtype, runtime=arguments.runtime)

    def print_error(message: str) -> None:
        print(f"error: {message}", file=sys.stderr)

    shown = tqdm(paths, unit="image", disable=len(paths) < 2 or not sys.stderr.isatty())
    written = write_predictions(predictor, shown, arguments.output, arguments.overlay, print_error)
    failed = len(paths) - written
    print(f"{written} masks in {arguments.output}" + (f", {failed} images failed" if failed else ""))
    return 1 if failed else 0
