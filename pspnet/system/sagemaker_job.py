"""What a SageMaker job asks of the training script beside training: hyperparameters as flags, and the failure file."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

FAILURE_NAME = "failure"
SHOWN_CHARACTERS = 1024
"""How much of the failure file SageMaker shows as the job's FailureReason."""


def job_arguments(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The command line, or the hyperparameters of SM_HPS as one where there is none.

    The training toolkit and the SDK's drivers pass hyperparameters as flags. A job whose `command` starts the script
    itself (the only way in which a job's SIGTERM reaches it, see docs/architecture.md) has them in SM_HPS alone.
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
    """Where the reason of a failure goes; None outside a SageMaker job.

    The SDK's drivers name the file in SM_OUTPUT_FAILURE, the training toolkit its folder in SM_OUTPUT_DIR.
    """
    if env.get("SM_OUTPUT_FAILURE"):
        return Path(env["SM_OUTPUT_FAILURE"])
    return Path(env["SM_OUTPUT_DIR"]) / FAILURE_NAME if env.get("SM_OUTPUT_DIR") else None


def report_failure(text: str, env: Mapping[str, str]) -> None:
    """Write why the job failed, unless there is a reason already; does nothing outside a SageMaker job.

    Of several processes the first one tells: what the others meet follows from it. Toolkit and drivers leave a file
    that exists as it is. Never raises: the error that is being reported must not be hidden by another one.
    """
    path = failure_file(env)
    if path is None or path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
    except OSError as error:
        if not path.exists():  # otherwise another process was faster
            print(f"warning: {path} could not be written: {error.strerror or error}", file=sys.stderr)


def describe_defect(error: BaseException) -> str:
    """An unexpected error for the failure file: its own message first, since only the beginning is shown."""
    head = "".join(traceback.format_exception_only(type(error), error)).strip()
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return f"{head[: SHOWN_CHARACTERS // 2]}\n\n{trace}"
