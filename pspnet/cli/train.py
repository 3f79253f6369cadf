"""`train.py` and `pspnet train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pspnet.config.parsing import parse_arguments
from pspnet.config.reference import dump_yaml, help_text
from pspnet.config.rules import check_channels, config_warnings
from pspnet.system.locations import find_beside
from pspnet.system.training_job import job_arguments, report_failure


def _find_quickstart() -> Path | None:
    configs = find_beside("configs")
    return None if configs is None or not (configs / "quickstart.yaml").is_file() else configs / "quickstart.yaml"


def train_command(argv: Sequence[str]) -> int:
    """`train.py` and `pspnet train`: settings from flags, file and environment; then train."""
    arguments = parse_arguments(job_arguments(argv, os.environ), os.environ, default_file=_find_quickstart())
    if arguments.help_requested:
        print(help_text())
        return 0
    config = arguments.config
    for warning in config_warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.print_config:
        print(dump_yaml(config), end="")
        return 0
    check_channels(config, arguments.sources)
    # Imported here, so that --help and wrong settings answer at once.
    from pspnet.training.loop import train

    exit_code = train(config).exit_code
    if exit_code:
        report_failure(
            f"The job was stopped by a signal (exit code {exit_code}) before its last epoch. Its checkpoint is in "
            f"{config.checkpoint_dir}; the same job goes on from it.",
            os.environ,
        )
    return exit_code
