"""`pspnet predict`: masks of images. What the commands that use a model directory share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pspnet.data.inputs import find_images
from pspnet.data.io.images import read_image, write_image, write_palette_png
from pspnet.errors import ConfigError, DataError, PspnetError
from pspnet.inference.runtimes.base import AUTO, NAMES


def register(subparsers: Any) -> None:
    """Add `predict` to the parser of `pspnet`."""
    parser = subparsers.add_parser("predict", help="write the masks of images")
    add_model_arguments(parser, precision="auto")
    parser.add_argument(
        "--runtime", default="auto", choices=NAMES, help="what runs the network, see docs/runtimes.md (default: auto)"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets <name>.png of every image")
    parser.add_argument("--overlay", action="store_true", help="also write <name>_overlay.jpg")
    parser.set_defaults(run=run_predict)


def add_model_arguments(parser: argparse.ArgumentParser, optional: bool = False, precision: str = "float32") -> None:
    """The model directory (which may be left out where `optional`), the device and the number format's default."""
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
        default=precision,
        choices=["auto", "float32", "bfloat16", "float16"],
        help=f"number format of the network; auto by device (default: {precision})",
    )


def run_predict(arguments: argparse.Namespace) -> int:
    """Write palette PNG masks. An image that can't be used is named and passed over; the exit code is then 1.

    Raises ConfigError for a runtime that cannot run here, be it that this shows at the first image only.
    """
    from pspnet.evaluation.visualization import overlay
    from pspnet.inference.predictor import Predictor
    from pspnet.system.device import choose_device
    from pspnet.system.precision import choose_precision

    paths = find_images(arguments.images)
    make_folder(arguments.output)
    device = choose_device(arguments.device)
    dtype = None if arguments.precision == AUTO else choose_precision(arguments.precision, device).dtype
    predictor = Predictor.load(arguments.model_dir, str(device), dtype=dtype, runtime=arguments.runtime)
    failed = 0
    for path in tqdm(paths, unit="image", disable=len(paths) < 2 or not sys.stderr.isatty()):
        try:
            image = read_image(path)
            mask = predictor(image)
        except ConfigError:  # the runtime cannot run here: no other image would fare better
            raise
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


def make_folder(folder: Path) -> None:
    """Make the output folder; DataError where that can't be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--output: {folder} cannot be made ({error.strerror or error}); give another folder."
        ) from error
