"""Worker process: the app under uvicorn, on a socket shared with the other workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvicorn

from pspnet.errors import ConfigError, PspnetError
from pspnet.serving.app import Service, create_app
from pspnet.serving.json_log import JsonLog, LogHandler
from pspnet.serving.processes.worker_arguments import StartFailure, WorkerArguments
from pspnet.serving.server_metrics import Table

STUCK_EXIT = 70
# Keep idle connections open for longer than a driver pauses between frames; a new one costs a round trip.
_KEEP_ALIVE_SECONDS = 75
# At a stop, keep idle connections open for a moment: a request may be in flight on one of them.
_LINGER_SECONDS = 0.3
_MONITOR_SECONDS = 1.0


def run_worker(arguments: WorkerArguments, listener: socket.socket, control: Connection) -> None:
    """Serve until SIGTERM, or until the supervisor closes its end of `control` or dies; then exit the process."""
    # Ctrl-C reaches every process of the terminal; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = JsonLog(worker=arguments.slot)
    _redirect_library_warnings(log)
    server: list[_Server] = []
    failures: list[Exception] = []

    def on_started(error: Exception | None) -> None:
        if error is not None:
            failures.append(error)
            with contextlib.suppress(OSError):
                control.send(describe_failure(error))
            server[0].stop_from_thread()

    settings, slot = arguments.settings, arguments.slot
    app = create_app(
        settings, Table(settings.workers, arguments.table), slot, log, on_started, arguments.listen_when_ready
    )
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=int(settings.grace_seconds) + 2,
    )  # fmt: skip
    server.append(_Server(config, app.state.service, control))
    server[0].run(sockets=[listener])
    # Skip torch's teardown: it takes seconds, and some versions crash in it.
    sys.stderr.flush()
    os._exit(1 if failures else 0)


def describe_failure(error: Exception) -> StartFailure:
    """Convert the exception of a failed start into the command's final message."""
    if isinstance(error, (PspnetError, OSError)):
        return StartFailure(str(error), 2 if isinstance(error, ConfigError) else 1)
    return StartFailure(
        f"The model does not start ({type(error).__name__}: {error}); see the log above for the traceback.", 1
    )


def _redirect_library_warnings(log: JsonLog) -> None:
    """Redirect the warnings of uvicorn, asyncio and Python to the same log."""
    logging.captureWarnings(True)
    for name in ("uvicorn.error", "asyncio", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [LogHandler(log)]
        logger.propagate = False
        logger.setLevel(logging.WARNING)


class _Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown that the supervisor triggers and that loses no requests."""

    def __init__(self, config: uvicorn.Config, service: Service, control: Connection) -> None:
        super().__init__(config)
        self._service, self._control = service, control
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Disabled: uvicorn raises the signal again after a clean shutdown, so the exit code would not be 0."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGTERM, self.stop)
        self._loop.add_reader(self._control.fileno(), self.stop)
        monitor = asyncio.ensure_future(self._monitor())
        await super().serve(sockets)
        monitor.cancel()

    def stop_from_thread(self) -> None:
        """Call `stop` from another thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Shut down gracefully: accept no connections, answer accepted requests, exit."""
        assert self._loop is not None
        self._loop.remove_reader(self._control.fileno())
        if self._service.draining:
            return
        self._service.draining = True
        for listening in getattr(self, "servers", []):
            listening.close()
        self._loop.call_later(_LINGER_SECONDS, self._exit)
        self._loop.call_later(self._service.settings.grace_seconds, self._service.engine.abort)

    def _exit(self) -> None:
        self.should_exit = True

    async def _monitor(self) -> None:
        """Exit the process when its model is stuck or its thread has died, so that it is replaced."""
        while True:
            await asyncio.sleep(_MONITOR_SECONDS)
            if self._service.engine.lost and not self._service.draining:
                self._service.log.write("model_lost", problem=self._service.engine.problem())
                self._service.log.close()
                os._exit(STUCK_EXIT)
