"""Supervisor of the workers of `pspnet serve`: start on a shared socket, restart, graceful shutdown.

It loads neither torch nor the web packages, so it is small and starts fast. uvicorn's own supervisor restarts a failing
worker in a loop without backoff, and does not know whether the model is ready.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import cast

from pspnet.errors import ConfigError
from pspnet.serving.json_log import JsonLog
from pspnet.serving.processes.worker_arguments import StartFailure, WorkerArguments
from pspnet.serving.serve_settings import ServeSettings
from pspnet.serving.server_metrics import READY, Table

# A worker that ends before its model was ready counts as a failed start. After this many in a row, serving ends.
MAX_FAILED_STARTS = 5
_MAX_BACKOFF_SECONDS = 30.0
# A worker that was ready for this long was healthy: its replacement starts without backoff.
_HEALTHY_SECONDS = 60.0
# An event loop sends a heartbeat every second. After this long without one, its worker is killed.
_HEARTBEAT_TIMEOUT = 60.0
_TICK_SECONDS = 0.25
_BACKLOG = 512


@dataclass
class _Slot:
    """Slot of a worker: its current process and the history of its starts."""

    index: int
    process: SpawnProcess | None = None
    control: Connection | None = None
    ready_at: float | None = None
    failed_starts: int = 0
    backoff: float = 0.0
    next_start: float | None = 0.0
    failure: StartFailure | None = None


def open_listener(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ConfigError if the address is not of this machine or the port is in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: not an address of this machine ({error.strerror or error}); use 127.0.0.1 or 0.0.0.0."
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port {port}: cannot listen on {host} ({error.strerror or error}); choose another port or --host."
        ) from error
    return listener


# By default, glibc returns the memory of every large activation to the system, which maps and zeroes it again for the
# next image. Keep it in the process instead, which then holds the peak memory of its largest image.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def supervise(settings: ServeSettings) -> int:
    """Serve until SIGTERM or Ctrl-C, and return the exit code: 0 after a clean stop, 1 or 2 if the workers cannot start
    (with a message on standard error), 1 if requests were lost. Raises ConfigError as `open_listener`.
    """
    listener = open_listener(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    settings = settings.replace(port=port)
    # Libraries read these variables at import, so they have to be in the environment of the workers.
    os.environ["OMP_NUM_THREADS"] = str(settings.threads_per_worker())
    for name, value in _KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Listening on {url}: POST /invocations, GET /ping, GET /metrics. Ctrl-C stops.", flush=True)
    with _metrics_file(settings.workers) as path:
        return Supervisor(settings, listener, path).run()


@contextlib.contextmanager
def _metrics_file(workers: int) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix="pspnet-metrics-")
    os.close(handle)
    try:
        Table(workers, Path(name))
        yield Path(name)
    finally:
        os.unlink(name)


class Supervisor:
    """Starts, monitors, restarts and stops the workers."""

    def __init__(self, settings: ServeSettings, listener: socket.socket, table: Path) -> None:
        self._settings, self._listener, self._table_path = settings, listener, table
        self._table = Table(settings.workers, table)
        self._slots = [_Slot(index) for index in range(settings.workers)]
        self._context = multiprocessing.get_context("spawn")
        self._log = JsonLog()
        self._signals = 0
        # Wakeup pipe: a signal interrupts `wait` immediately.
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        self._wakeup_writer.setblocking(False)

    def run(self) -> int:
        """Serve until a stop, and return the exit code of the command."""
        before = {name: signal.signal(name, self._on_signal) for name in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(self._wakeup_writer.fileno())
        try:
            while not self._signals:
                self._start_due()
                self._wait()
                for slot in self._slots:
                    self._check(slot)
                    if slot.failure is not None:
                        return self._give_up(slot.failure)
            return self._stop()
        finally:
            for slot in self._slots:  # after an unexpected exception only: leave no process behind
                if slot.process is not None and slot.process.is_alive():
                    slot.process.kill()
            self._log.close()
            signal.set_wakeup_fd(-1)
            for name, handler in before.items():
                signal.signal(name, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.process is None and slot.next_start is not None and time.monotonic() >= slot.next_start:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        # While others serve, a new worker accepts no connections before its model is ready.
        others = any(other.ready_at is not None for other in self._slots)
        arguments = WorkerArguments(self._settings, slot.index, self._table_path, listen_when_ready=others)
        parent_end, child_end = self._context.Pipe()
        values = (arguments, self._listener, child_end)
        slot.process = self._context.Process(target=_run_worker, args=values, name=f"worker-{slot.index}")
        slot.process.start()
        child_end.close()
        slot.control, slot.next_start = parent_end, None

    def _wait(self) -> None:
        """Wait for an exit, a signal or the next start, for a tick at most."""
        delays = [slot.next_start - time.monotonic() for slot in self._slots if slot.next_start is not None]
        sentinels = [slot.process.sentinel for slot in self._slots if slot.process is not None]
        wait([*sentinels, self._wakeup_reader], max(0.0, min([_TICK_SECONDS, *delays])))

    def _check(self, slot: _Slot) -> None:
        if slot.process is None:
            return
        row = self._table.rows[slot.index]
        if slot.process.is_alive():
            current = row.pid == slot.process.pid
            if slot.ready_at is None and current and row.state == READY:
                slot.ready_at, slot.failed_starts = time.monotonic(), 0
                self._log.write("worker_ready", worker=slot.index, pid=slot.process.pid)
            silent = row.heartbeat_age
            if slot.ready_at is not None and current and silent > _HEARTBEAT_TIMEOUT:
                self._log.write("worker_silent", worker=slot.index, pid=slot.process.pid, seconds=round(silent))
                slot.process.kill()
            return
        self._handle_exit(slot)

    def _handle_exit(self, slot: _Slot) -> None:
        """Schedule the restart of a worker that has ended by itself, or record the failure that ends serving."""
        assert slot.process is not None
        reported = self._reported_failure(slot)
        exit_code, slot.process = slot.process.exitcode, None
        was_ready, slot.ready_at = slot.ready_at, None
        healthy = was_ready is not None and time.monotonic() - was_ready >= _HEALTHY_SECONDS
        slot.failed_starts += not was_ready
        slot.backoff = 0.0 if healthy else slot.backoff
        self._log.write("worker_died", worker=slot.index, exit_code=exit_code, next_start_seconds=slot.backoff)
        self._table.rows[slot.index].mark_dead()
        slot.next_start = time.monotonic() + slot.backoff
        slot.backoff = min(_MAX_BACKOFF_SECONDS, max(1.0, 2 * slot.backoff))
        some_ready = any(other.ready_at is not None for other in self._slots)
        if (reported is not None and not some_ready) or slot.failed_starts >= MAX_FAILED_STARTS:
            slot.failure = reported or _unexplained_exit(exit_code)

    def _reported_failure(self, slot: _Slot) -> StartFailure | None:
        """Return the StartFailure that a worker sent before it ended, or None."""
        assert slot.control is not None
        try:
            return cast("StartFailure", slot.control.recv()) if slot.control.poll() else None
        except (EOFError, OSError):
            return None
        finally:
            slot.control.close()

    def _give_up(self, failure: StartFailure) -> int:
        self._end_workers(seconds=5.0)
        self._log.close()
        print(f"error: {failure.message}", file=sys.stderr, flush=True)
        return failure.exit_code

    def _stop(self) -> int:
        self._log.write("stopping", grace_seconds=self._settings.grace_seconds)
        clean = self._end_workers(self._settings.grace_seconds + 5.0)
        self._log.write("stopped", clean=clean)
        return 0 if clean else 1

    def _end_workers(self, seconds: float) -> bool:
        """Stop all workers; return True if none had to be killed. A second signal kills them immediately."""
        self._listener.close()
        with contextlib.suppress(BlockingIOError):
            self._wakeup_reader.recv(64)
        signals, deadline = self._signals, time.monotonic() + seconds
        running = [slot.process for slot in self._slots if slot.process is not None]
        starting = [slot.process for slot in self._slots if slot.process is not None and slot.ready_at is None]
        for slot in self._slots:
            if slot.control is not None:
                slot.control.close()
        for process in starting:  # it may not poll its pipe for seconds, and has no requests to lose
            process.terminate()
        while any(process.is_alive() for process in running):
            if time.monotonic() > deadline or self._signals > signals:
                break
            wait([self._wakeup_reader, *(process.sentinel for process in running if process.is_alive())], _TICK_SECONDS)
        unfinished = [process for process in running if process.is_alive()]
        for process in unfinished:
            process.kill()
        for process in running:
            process.join()
        return not unfinished and all(process.exitcode == 0 for process in running if process not in starting)


def _run_worker(arguments: WorkerArguments, listener: socket.socket, control: Connection) -> None:
    """Entry point of a worker process; only that process imports torch and the web packages."""
    from pspnet.serving.processes.worker import run_worker

    run_worker(arguments, listener, control)


def _unexplained_exit(exit_code: int | None) -> StartFailure:
    """Failure of workers that ended without a message, for example killed by the system."""
    end = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return StartFailure(
        f"the workers do not start: {MAX_FAILED_STARTS} in a row ended before their model was ready, the last one with "
        f"{end}. Signal 9 usually means out of memory; use fewer --workers.",
        1,
    )
