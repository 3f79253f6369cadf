"""Messages between the supervisor and a worker, in a module that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pspnet.serving.serve_settings import ServeSettings


@dataclass(frozen=True)
class WorkerArguments:
    """Arguments of a worker process. `table` is the file of the shared metrics, `slot` the index of its row."""

    settings: ServeSettings
    slot: int
    table: Path
    listen_when_ready: bool


@dataclass(frozen=True)
class StartFailure:
    """Reason why a worker could not start: a sentence for the user, and the command's exit code."""

    message: str
    exit_code: int
