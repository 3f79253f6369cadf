"""`pspnet evaluate`: score a model, or mask files, on images with annotations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal, Union

from pspnet.classes import IGNORE_INDEX
from pspnet.cli.predict import add_model_arguments
from pspnet.config.values import parse_value
from pspnet.errors import ConfigError

_DESCRIPTION = """\
Score a model on images with annotations, by one protocol or several (docs/evaluation.md):
whole, one forward pass per image at its own size; slide, overlapping windows of crop_size; multiscale, slide at several
scales with mirror images; builtin, the score of SageMaker's built-in algorithm, always together with whole.
With --predictions, score mask files instead of a model.
torchrun distributes the images over processes: torchrun --nproc_per_node 2 -m pspnet.cli evaluate ..."""


def register(subparsers: Any) -> None:
    """Add `evaluate` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model, or mask files, on images with annotations",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, optional=True)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEG or PNG images")
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="folder of PNG annotations")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for metrics.json, report.html and more"
    )
    _option(parser, "label_map", "FILE", "JSON file: pixel value to class id", kind=Path)
    _option(parser, "ignore", "ID", f"class id that is not scored (default: {IGNORE_INDEX})", str(IGNORE_INDEX))
    _option(parser, "protocol", "NAMES", "whole, slide, multiscale, builtin, or several separated by commas", "whole")
    _option(parser, "crop_size", "PX", "side of windows and of builtin's crop (default: the model's)")
    _option(parser, "base_size", "PX", "long side of slide and multiscale; 0: the image's own (default: the model's)")
    _option(parser, "scales", "LIST", "of multiscale (default: 0.5,0.75,1,1.25,1.5,1.75)")
    _option(parser, "flip", "BOOL", "average windows with their mirror images (default: multiscale True, slide False)")
    _option(parser, "batch_size", "N", "images or windows in one forward pass (default: 4)", "4")
    _option(parser, "workers", "N", "processes that load images (default: auto)", "auto")
    _option(parser, "resume", "WHEN", "never starts over, auto keeps the scores in --output (default)", "auto")
    _option(
        parser,
        "save_masks",
        "DIR",
        "folder for the masks; a subfolder for each of several protocols",
        kind=Path,
    )
    _option(parser, "predictions", "DIR", "score these PNG masks of class ids instead of a model", kind=Path)
    _option(parser, "num_classes", "N", "with --predictions and without MODEL_DIR")
    _option(parser, "details", "BOOL", "also count confidences and boundaries for the report (default: True)", "True")
    _option(parser, "report", "BOOL", "write report.html (default: True)", "True")
    parser.set_defaults(run=run_evaluate)


def _option(
    parser: argparse.ArgumentParser, name: str, metavar: str, text: str, default: str | None = None, kind: Any = str
) -> None:
    flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*flags, metavar=metavar, help=text, default=default, type=kind)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Run the evaluation that the options describe."""
    if arguments.resume not in ("auto", "never"):
        raise ConfigError(f"--resume: found {arguments.resume!r}; expected auto or never.")
    values = {
        "ignore": _parse(arguments, "ignore", int, "a whole number from 0 to 255", 0, 255),
        "details": _parse(arguments, "details", bool, "True or False"),
        "report": _parse(arguments, "report", bool, "True or False"),
        "protocols": [name.strip() for name in arguments.protocol.split(",") if name.strip()],
        "crop_size": _parse(arguments, "crop_size", int, "a whole number, 0 or more"),
        "base_size": _parse(arguments, "base_size", int, "a whole number, 0 or more"),
        "scales": _parse(arguments, "scales", tuple[float, ...], "numbers separated by commas"),
        "flip": _parse(arguments, "flip", bool, "True or False"),
        "batch_size": _parse(arguments, "batch_size", int, "a whole number, 1 or more", 1),
        "workers": _parse(arguments, "workers", Union[Literal["auto"], int], "auto or a whole number, 0 or more"),
        "num_classes": _parse(arguments, "num_classes", int, "a whole number from 1 to 254", 1, 254),
        "resume": arguments.resume == "auto",
        "command": arguments.command_line,
    }
    # Imported here, so that --help and wrong options respond without importing torch.
    from pspnet.evaluation.evaluate import EvaluationRequest, run_evaluation

    paths = ("annotations", "output", "model_dir", "images", "predictions", "label_map", "save_masks")
    common = {name: getattr(arguments, name) for name in (*paths, "device", "precision")}
    run_evaluation(EvaluationRequest(**common, **values), log=print)
    return 0


def _parse(arguments: argparse.Namespace, name: str, kind: Any, expected: str, low: int = 0, high: int = 0) -> Any:
    """Parse an option; None if it was not given, ConfigError for other text and integers outside low..high."""
    text = getattr(arguments, name)
    try:
        value = None if text is None else parse_value(text, kind)
    except ValueError:
        value = -1
    if type(value) is int and (value < low or 0 < high < value):
        raise ConfigError(f"--{name}: found {text!r}; expected {expected}.")
    return value
