"""Training script as a SageMaker job: hyperparameters as flags, and the failure file."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

FAILURE_NAME = "failure"
SHOWN_CHARACTERS = 1024
"""Characters of the failure file that SageMaker shows as the job's FailureReason."""


def job_arguments(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The command line, or the hyperparameters of SM_HPS as flags if it is empty.

    The training toolkit and the SDK's drivers pass hyperparameters as flags. A job whose `command` starts the script
    directly (required for the script to receive SIGTERM, see docs/architecture.md) has them in SM_HPS only.
    """
    if argv:
        return list(argv)
    try:
        values = json.loads(env.get("SM_HPS", "{}"))
    except ValueError:
        values = {}
    if not isinstance(values, dict):
        return []
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def failure_file(env: Mapping[str, str]) -> Path | None:
    """Path of the job's failure file; None outside a SageMaker job.

    The SDK's drivers set the file in SM_OUTPUT_FAILURE, the training toolkit its folder in SM_OUTPUT_DIR.
    """
    if env.get("SM_OUTPUT_FAILURE"):
        return Path(env["SM_OUTPUT_FAILURE"])
    return Path(env["SM_OUTPUT_DIR"]) / FAILURE_NAME if env.get("SM_OUTPUT_DIR") else None


def report_failure(text: str, env: Mapping[str, str]) -> None:
    """Write the reason of a failure, unless one is already written; does nothing outside a SageMaker job.

    The first of several processes to fail writes it, because the other failures follow from it. Toolkit and drivers
    keep an existing file. Never raises, so that the reported error is not hidden by another one.
    """
    path = failure_file(env)
    if path is None or path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
    except OSError as error:
        if not path.exists():  # otherwise another process wrote it first
            print(f"warning: {path} could not be written: {error.strerror or error}", file=sys.stderr)


def describe_exception(error: BaseException) -> str:
    """Text of an unexpected exception for the failure file: message first, because only the beginning is shown."""
    head = "".join(traceback.format_exception_only(type(error), error)).strip()
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return f"{head[: SHOWN_CHARACTERS // 2]}\n\n{trace}"
