"""`pspnet report`: evaluations as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pspnet.errors import ConfigError

_DESCRIPTION = """\
Write one self-contained HTML file about an evaluation, or several side by side (docs/evaluation.md): scores with
intervals, classes, confusions, calibration, pictures, training curves and provenance. Several folders are compared, the
others with the first, on the same images. A training run's folder alone gives its curves and scores."""
_SAMPLES = 3
_MOST_SAMPLES = 20


def register(subparsers: Any) -> None:
    """Add `report` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "report",
        help="an HTML page about an evaluation, or comparing several",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="output of evaluate, or one run's folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the HTML file")
    parser.add_argument("--protocol", metavar="NAMES", help="evaluated protocols to show, separated by commas")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, if they were moved")
    parser.add_argument("--annotations", type=Path, metavar="DIR", help="folder of the annotations, if they were moved")
    parser.add_argument("--run", dest="run_folder", type=Path, metavar="DIR", help="the training run, for its curves")
    parser.add_argument(
        "--samples", type=int, default=_SAMPLES, metavar="N", help="best, median and worst images (default: 3 of each)"
    )
    parser.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from pspnet.evaluation.html_report.page import ReportOptions, write_report

    if not 0 <= arguments.samples <= _MOST_SAMPLES:
        raise ConfigError(f"--samples: found {arguments.samples}; expected a whole number from 0 to {_MOST_SAMPLES}.")
    if arguments.output.is_dir():
        raise ConfigError(f"--output: {arguments.output} is a folder; expected the name of the HTML file.")
    resolved = [folder.resolve() for folder in arguments.folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("report: the same folder is given twice; give each once.")
    names = arguments.protocol and [name.strip() for name in arguments.protocol.split(",") if name.strip()]
    options = ReportOptions(
        names or None, arguments.images, arguments.annotations, arguments.run_folder, arguments.samples
    )
    write_report(arguments.folders, arguments.output, options)
    print(f"Written: {arguments.output}")
    return 0
