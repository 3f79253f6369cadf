"""Keeps the workers of `pspnet serve` alive: starts them on one socket, replaces those that die, ends them in order.

It needs neither torch nor the web packages, so it stays small and starts at once. uvicorn's own supervisor would start
a worker that cannot start again and again without a pause, and does not know whether its model answers.
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
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from pspnet.errors import ConfigError
from pspnet.serving.processes.json_log import JsonLog
from pspnet.serving.processes.server_metrics import READY, Table
from pspnet.serving.processes.worker_arguments import StartFailure, WorkerArguments
from pspnet.serving.serve_settings import ServeSettings

# A worker that ends before its model ever answered counts as a failed start; after this many in a row nobody waits on.
MOST_FAILED_STARTS = 5
_LONGEST_PAUSE = 30.0
# A worker that lived so long after its start was healthy: its replacement starts without a pause.
_HEALTHY_SECONDS = 60.0
# An event loop beats every second. One that is silent for so long will not come back.
_SILENT_SECONDS = 60.0
_TICK_SECONDS = 0.25
_BACKLOG = 512


@dataclass
class _Slot:
    """A worker's place: its process now, and how its starts went."""

    index: int
    process: SpawnProcess | None = None
    control: Connection | None = None
    ready_at: float | None = None
    failed_starts: int = 0
    pause: float = 0.0
    next_start: float | None = 0.0
    failure: StartFailure | None = None


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError where the address is not of this machine or the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: no address of this machine ({error.strerror or error}).") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port {port} on {host} cannot be listened on ({error.strerror or error}); choose another one."
        ) from error
    return listener


# glibc would give the memory of every large activation back to the system and have it mapped and zeroed anew for the
# next image. It stays with the process instead, which then uses what its largest image took.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def supervise(settings: ServeSettings) -> int:
    """Serve until SIGTERM or Ctrl-C. Exit code 0 for a clean stop, 1 or 2 where the workers cannot start (told on
    standard error), 1 where requests had to be given up. Raises ConfigError for an address that cannot be listened on.
    """
    listener = open_listener(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    settings = replace(settings, port=port)
    # Read by libraries when they are loaded, so the workers must find them in their environment.
    os.environ["OMP_NUM_THREADS"] = str(settings.threads_per_worker())
    for name, value in _KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Listening on {url}: POST /invocations, GET /ping, GET /metrics. Ctrl-C stops.", flush=True)
    with _table_file(settings.workers) as path:
        return Supervisor(settings, listener, path).run()


@contextlib.contextmanager
def _table_file(workers: int) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix="pspnet-metrics-")
    os.close(handle)
    try:
        Table(workers, Path(name))
        yield Path(name)
    finally:
        os.unlink(name)


class Supervisor:
    """Starts, watches, replaces and stops the workers."""

    def __init__(self, settings: ServeSettings, listener: socket.socket, table: Path) -> None:
        self._settings, self._listener, self._table_path = settings, listener, table
        self._table = Table(settings.workers, table)
        self._slots = [_Slot(index) for index in range(settings.workers)]
        self._context = multiprocessing.get_context("spawn")
        self._log = JsonLog()
        self._signals = 0
        # A signal writes here, so that a wait ends at once.
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> int:
        """Until a stop; the command's exit code."""
        before = {name: signal.signal(name, self._on_signal) for name in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(self._waker.fileno())
        try:
            while not self._signals:
                self._start_due()
                self._wait()
                for slot in self._slots:
                    self._look_after(slot)
                    if slot.failure is not None:
                        return self._give_up(slot.failure)
            return self._stop()
        finally:
            for slot in self._slots:  # by a defect only: nobody is left behind
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
        # While others answer, a new worker takes no connection that it cannot serve yet.
        others = any(other.ready_at is not None for other in self._slots)
        arguments = WorkerArguments(self._settings, slot.index, self._table_path, listen_when_ready=others)
        mine, its = self._context.Pipe()
        slot.process = self._context.Process(
            target=_run_worker, args=(arguments, self._listener, its), name=f"worker-{slot.index}"
        )
        slot.process.start()
        its.close()
        slot.control, slot.next_start = mine, None

    def _wait(self) -> None:
        """Until something happens, for a tick at most."""
        pauses = [slot.next_start - time.monotonic() for slot in self._slots if slot.next_start is not None]
        sentinels = [slot.process.sentinel for slot in self._slots if slot.process is not None]
        wait([*sentinels, self._woken], max(0.0, min([_TICK_SECONDS, *pauses])))

    def _look_after(self, slot: _Slot) -> None:
        if slot.process is None:
            return
        row = self._table.rows[slot.index]
        if slot.process.is_alive():
            mine = row.pid == slot.process.pid
            if slot.ready_at is None and mine and row.state == READY:
                slot.ready_at, slot.failed_starts = time.monotonic(), 0
                self._log.write("worker_ready", worker=slot.index, pid=slot.process.pid)
            if slot.ready_at is not None and mine and row.since_beat > _SILENT_SECONDS:
                self._log.write("worker_silent", worker=slot.index, pid=slot.process.pid, seconds=round(row.since_beat))
                slot.process.kill()
            return
        self._bury(slot)

    def _bury(self, slot: _Slot) -> None:
        """A worker has ended by itself: when to start the next one, or whether to give up."""
        assert slot.process is not None
        told = self._last_words(slot)
        exit_code, slot.process = slot.process.exitcode, None
        was_ready, slot.ready_at = slot.ready_at, None
        healthy = was_ready is not None and time.monotonic() - was_ready >= _HEALTHY_SECONDS
        slot.failed_starts += was_ready is None
        slot.pause = 0.0 if healthy else slot.pause
        self._log.write("worker_died", worker=slot.index, exit_code=exit_code, next_start_seconds=slot.pause)
        self._table.rows[slot.index].bury()
        slot.next_start = time.monotonic() + slot.pause
        slot.pause = min(_LONGEST_PAUSE, max(1.0, 2 * slot.pause))
        nobody = all(other.ready_at is None for other in self._slots)
        if (told is not None and nobody) or slot.failed_starts >= MOST_FAILED_STARTS:
            slot.failure = told or _unexplained(exit_code)

    def _last_words(self, slot: _Slot) -> StartFailure | None:
        """The StartFailure that a worker sent before it ended, or None."""
        assert slot.control is not None
        try:
            words: StartFailure | None = slot.control.recv() if slot.control.poll() else None
            return words
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
        """Tell all workers to end, and wait; whether none had to be killed. A second signal kills them at once."""
        self._listener.close()
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(64)
        signals, deadline = self._signals, time.monotonic() + seconds
        running = [slot.process for slot in self._slots if slot.process is not None]
        starting = [slot.process for slot in self._slots if slot.process is not None and slot.ready_at is None]
        for slot in self._slots:
            if slot.control is not None:
                slot.control.close()
        for process in starting:  # it may be seconds away from looking at its pipe, and has nothing to lose
            process.terminate()
        while any(process.is_alive() for process in running):
            if time.monotonic() > deadline or self._signals > signals:
                break
            wait([self._woken, *(process.sentinel for process in running if process.is_alive())], _TICK_SECONDS)
        late = [process for process in running if process.is_alive()]
        for process in late:
            process.kill()
        for process in running:
            process.join()
        return not late and all(process.exitcode == 0 for process in running if process not in starting)


def _run_worker(arguments: WorkerArguments, listener: socket.socket, control: Connection) -> None:
    """Entry point of a worker process; only that process imports torch and the web packages."""
    from pspnet.serving.processes.worker import run_worker

    run_worker(arguments, listener, control)


def _unexplained(exit_code: int | None) -> StartFailure:
    """A worker that ended without a word, as one that the system killed."""
    end = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return StartFailure(
        f"the workers do not start: {MOST_FAILED_STARTS} ended in a row before their model answered, the last one "
        f"with {end}. If it is signal 9, the machine's memory does not suffice; use fewer --workers.",
        1,
    )
