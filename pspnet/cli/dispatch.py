"""Parser of all commands and the entry point of `pspnet`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

import pspnet
from pspnet.cli import benchmark as cli_benchmark
from pspnet.cli import data as cli_data
from pspnet.cli import evaluate as cli_evaluate
from pspnet.cli import export as cli_export
from pspnet.cli import import_weights as cli_import
from pspnet.cli import predict as cli_model
from pspnet.cli import report as cli_report
from pspnet.cli import serve as cli_serve
from pspnet.cli import stream as cli_stream
from pspnet.cli.models import models_command
from pspnet.cli.train import train_command
from pspnet.system.exit_codes import run_guarded


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; `train`, `models` and `sagemaker` parse their own options."""
    parser = argparse.ArgumentParser(prog="pspnet", description="PSPNet semantic segmentation.")
    parser.add_argument("--version", action="version", version=f"pspnet {pspnet.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    subparsers.add_parser("train", help="train a model; the same as train.py (see `pspnet train --help`)")
    subparsers.add_parser("models", help="list the published models that can be used by name")
    subparsers.add_parser("sagemaker", help="train and host on SageMaker (see `pspnet sagemaker --help`)")
    cli_evaluate.register(subparsers)
    cli_report.register(subparsers)
    cli_model.register(subparsers)
    cli_import.register(subparsers)
    cli_export.register(subparsers)
    cli_serve.register(subparsers)
    cli_benchmark.register(subparsers)
    cli_stream.register(subparsers)
    cli_data.register(subparsers)
    return parser


def dispatch(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    if argv and argv[0] == "train":
        return train_command(argv[1:])
    if argv and argv[0] == "models":
        return models_command(argv[1:])
    if argv and argv[0] == "sagemaker":
        # Imported here, because only these commands need it.
        from sagemaker_entry.commands import dispatch as dispatch_sagemaker

        return dispatch_sagemaker(argv[1:], program="pspnet sagemaker")
    arguments = build_parser().parse_args(argv)
    arguments.command_line = shlex.join(["pspnet", *argv])
    code: int = arguments.run(arguments)
    return code


def main() -> None:
    """Entry point of the console command."""
    sys.exit(run_guarded(dispatch, sys.argv[1:]))
