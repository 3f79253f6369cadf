"""Table of all commands and the entry point of `pspnet`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pspnet
from pspnet.config.command_table import Command, run_command
from pspnet.system.exit_codes import run_guarded

COMMANDS = {
    "train": Command("pspnet.cli.train", "train_command", "train a model; the same as train.py"),
    "evaluate": Command("pspnet.cli.evaluate", "evaluate_command", "score a model, or mask files, on annotated images"),
    "report": Command("pspnet.cli.report", "report_command", "an HTML page about an evaluation, or comparing several"),
    "predict": Command("pspnet.cli.predict", "predict_command", "write the masks of images"),
    "import": Command("pspnet.cli.import_weights", "import_command", "convert another program's weights"),
    "export": Command("pspnet.cli.export", "export_command", "write a model as a graph for other runtimes"),
    "serve": Command("pspnet.cli.serve", "serve_command", "serve a model over HTTP"),
    "benchmark": Command("pspnet.cli.benchmark", "benchmark_command", "measure inference speed on this machine"),
    "stream": Command("pspnet.cli.stream", "stream_command", "live masks of a video, camera or stream"),
    "doctor": Command("pspnet.cli.data", "doctor_command", "examine a data set fully before training"),
    "prepare": Command("pspnet.cli.data", "prepare_command", "write a published data set as channels"),
    "models": Command("pspnet.cli.models", "models_command", "list the published models that can be used by name"),
    "sagemaker": Command("pspnet.cli.dispatch", "sagemaker_command", "train and host on Amazon SageMaker"),
}


def sagemaker_command(argv: Sequence[str]) -> int:
    """Run a SageMaker command."""
    # Imported here, because only these commands need it.
    from sagemaker_entry.commands import dispatch as dispatch_sagemaker

    return dispatch_sagemaker(argv, program="pspnet sagemaker")


def dispatch(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    if list(argv[:1]) == ["--version"]:
        print(f"pspnet {pspnet.__version__}")
        return 0
    return run_command("pspnet", "PSPNet semantic segmentation.", COMMANDS, argv)


def main() -> None:
    """Entry point of the console command."""
    sys.exit(run_guarded(dispatch, sys.argv[1:]))
