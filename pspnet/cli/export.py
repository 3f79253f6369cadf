"""`pspnet export`: write a trained model as a graph for other runtimes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from pspnet.artifact.export_record import FORMATS
from pspnet.data.inputs import find_images
from pspnet.errors import ConfigError

_DESCRIPTION = """\
Write a model as an ONNX, OpenVINO, TorchScript or torch.export graph for images of any size, and verify it against
PyTorch (docs/export.md). With --int8, calibrate an 8-bit graph on a data set; it is rejected if it loses more than 0.5
points of mIoU."""


def register(subparsers: Any) -> None:
    """Add `export` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "export",
        help="write a model as a graph for other runtimes",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="model directory written by training")
    parser.add_argument("--format", required=True, choices=FORMATS, help="format of the graph")
    parser.add_argument("--int8", action="store_true", help="8-bit weights and activations (onnx, openvino)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DATA",
        help="for --int8: a data set as in training; train calibrates, validation scores",
    )
    _option(
        parser, "calibration_images", "N", "maximum number of calibration images (default: 64)", kind=int, default=64
    )
    _option(parser, "scored_images", "N", "maximum number of scored images (default: 100)", kind=int, default=100)
    _option(parser, "ignore", "ID", "class id that is not scored (default: as in training, or 255)", kind=int)
    flags = ("--allow_loss", "--allow-loss")
    parser.add_argument(*flags, action="store_true", help="keep an 8-bit graph that loses more than 0.5 points")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="images for the verification: files, folders, patterns (default: --calibration, else generated scenes)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the export (default: MODEL_DIR/exports/FORMAT-PRECISION)"
    )
    parser.set_defaults(run=run_export)


def _option(parser: argparse.ArgumentParser, name: str, metavar: str, text: str, **options: Any) -> None:
    flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    options["type"] = options.pop("kind")
    parser.add_argument(*flags, metavar=metavar, help=text, **options)


def run_export(arguments: argparse.Namespace) -> int:
    """Write an export, and print its verification and scores."""
    _check_options(arguments)
    images = find_images(arguments.images) if arguments.images else []

    from pspnet.exporting.exporter import Request, export_model

    started = time.monotonic()
    names = ("model_dir", "format", "output", "calibration", "calibration_images", "scored_images", "allow_loss")
    options = {name: getattr(arguments, name) for name in names}
    export = export_model(Request(images=images, ignore_index=arguments.ignore, **options))
    int8 = export.record.int8
    if int8:
        print(
            f"{int8['quantised_operations']} of {int8['weighted_operations']} convolutions and matrix products are "
            f"8-bit; settings: {int8['settings']}."
        )
    size = sum(export.record.files.values()) / 1e6
    print(f"Written: {export.folder} ({size:.1f} MB, {time.monotonic() - started:.0f} s)")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.int8 and arguments.calibration is None:
        raise ConfigError(
            "--int8 needs --calibration with a data set: its images set the ranges of the 8-bit values, its "
            "annotations measure the loss."
        )
    given = {
        "calibration": arguments.calibration is not None,
        "ignore": arguments.ignore is not None,
        "allow_loss": arguments.allow_loss,
    }
    for name, is_given in given.items():
        if is_given and not arguments.int8:
            raise ConfigError(f"--{name} is for 8-bit graphs: add --int8, or omit it.")
