"""What the supervisor tells a worker and hears from it. Apart from both, so that the supervisor needs no torch."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pspnet.serving.serve_settings import ServeSettings


@dataclass(frozen=True)
class Order:
    """What a worker is to do. `table` is the file of the shared numbers, `slot` this worker's row."""

    settings: ServeSettings
    slot: int
    table: Path
    listen_when_ready: bool


@dataclass(frozen=True)
class StartFailure:
    """Why a worker's model cannot be used: a sentence for the user, and the command's exit code."""

    message: str
    exit_code: int


def work(order: Order, listener: socket.socket, control: Connection) -> None:
    """The first function of a worker's process."""
    from pspnet.serving.processes.worker import run_worker

    run_worker(order, listener, control)
