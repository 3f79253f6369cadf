"""Starlette application of the endpoint: GET /ping, POST /invocations, GET /metrics.

`create_app` is an ASGI factory: `uvicorn --factory pspnet.serving.app:create_app` serves the model directory in
PSPNET_MODEL_DIR, in any container that runs ASGI apps. `pspnet serve` adds a supervisor and worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from pspnet.errors import PspnetError
from pspnet.inference.predictor import Predictor
from pspnet.inference.runtimes.trials import Choice
from pspnet.serving.engine import Engine
from pspnet.serving.json_log import JsonLog
from pspnet.serving.loading import load_predictor
from pspnet.serving.openapi import openapi_schema
from pspnet.serving.protocol.accept import choose_answer
from pspnet.serving.protocol.exchange import TEXT, ClientGoneError, Exchange, Receive, Send
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.queued_request import BUSY, QueuedRequest, RequestCancelledError
from pspnet.serving.serve_settings import ServeSettings
from pspnet.serving.server_metrics import CONTENT_TYPE, STAGES, Table

CLIENT_GONE = 499
INVOCATIONS = "/invocations"
# Limit on the bodies in memory, of all requests that are being read or are queued. Slow clients are not queued yet, so
# the capacity of the queue does not bound their memory.
_HELD_BYTES = 512_000_000


class Service:
    """Request handlers and their shared state: engine, metrics and log."""

    def __init__(self, settings: ServeSettings, engine: Engine, table: Table, slot: int, log: JsonLog):
        self.settings, self.engine, self.table, self.log = settings, engine, table, log
        self.row = table.rows[slot]
        self.draining = False
        self._held = 0

    async def ping(self, exchange: Exchange) -> None:
        """200 if the model is ready, else 503 with the reason. At startup, all workers have to be ready."""
        problem = self.engine.problem()
        if problem is None and self.table.starting_up:
            # A platform sends requests after the first 200, and one may reach a worker that is not ready.
            problem = "Other workers are still loading the model."
        status, body = (200, b"") if problem is None else (503, problem.encode())
        await exchange.answer(status, body, TEXT, close=self.draining)

    async def metrics(self, exchange: Exchange) -> None:
        """Metrics of all workers in Prometheus' text format."""
        await exchange.answer(200, self.table.render().encode(), CONTENT_TYPE, close=self.draining)

    async def invocations(self, exchange: Exchange) -> None:
        """Answer an image with its mask."""
        seconds: dict[str, float] = {}
        try:
            try:
                request = await self._predict(exchange)
                seconds = request.seconds
                if request.error is not None:
                    raise request.error
                await self._answer_mask(exchange, request)
            except RequestError as error:
                await self.refuse(exchange, error)
            except (ClientGoneError, RequestCancelledError):
                exchange.status = CLIENT_GONE
            except Exception as error:
                await self.fail(exchange, error)
        finally:
            self._record(exchange, seconds)

    async def not_found(self, request: Request, error: HTTPException) -> PlainTextResponse:
        """Answer 404 and 405 with one sentence."""
        known = "this endpoint serves GET /ping, POST /invocations and GET /metrics"
        if error.status_code == 405:
            text = f"{request.method[:20]} is not allowed for {request.url.path[:80]}; {known}."
        else:
            text = f"Unknown path {request.url.path[:80]}; {known}."
        self.row.count_request(error.status_code, 0, len(text), ())
        return PlainTextResponse(f"{text}\n", error.status_code, headers=error.headers)

    async def refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Answer with the error's status and sentence."""
        headers = (("retry-after", str(self.engine.retry_after())),) if error.status == 503 else ()
        await exchange.answer(error.status, f"{error}\n".encode(), TEXT, headers, close=self.draining)

    async def fail(self, exchange: Exchange, error: Exception) -> None:
        """Answer 500 to an unexpected exception: log the traceback, and return the request id that finds it."""
        self.log.error("defect", error, request_id=exchange.request_id)
        if exchange.status == 0:
            text = f"The endpoint failed to answer this request; see its log for request id {exchange.request_id}.\n"
            await exchange.answer(500, text.encode(), TEXT, close=self.draining)

    async def _predict(self, exchange: Exchange) -> QueuedRequest:
        """Queue the request and wait for its result. Raises RequestError if it is not accepted, ClientGoneError."""
        headers = exchange.headers
        form = choose_answer(headers.get("accept"), headers.get("x-amzn-sagemaker-custom-attributes"))
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(
                415, f"The body is compressed ({headers['content-encoding'][:40]}); send it uncompressed."
            )
        if self.engine.full:  # before reading the body
            raise RequestError(503, BUSY)
        try:
            body = await exchange.read_body(self.settings.request_bytes, self.settings.body_seconds, self._hold)
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            request = QueuedRequest(body, headers.get("content-type"), form, lambda _: _wake(loop, done))
            self.engine.submit(request)
            await self._wait(exchange, request, done)
        finally:
            self._held -= exchange.received
        return request

    async def _wait(self, exchange: Exchange, request: QueuedRequest, done: asyncio.Future[None]) -> None:
        """Wait until the request is done or its client disconnects, which cancels it."""
        watcher = asyncio.ensure_future(exchange.gone())
        watcher.add_done_callback(lambda _: _set(done))
        try:
            await done
        finally:
            watcher.cancel()
            if request.answer is None and request.error is None:
                self.engine.cancel(request)
        if request.answer is None and request.error is None:
            raise ClientGoneError

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > _HELD_BYTES:
            raise RequestError(503, BUSY)

    async def _answer_mask(self, exchange: Exchange, request: QueuedRequest) -> None:
        assert request.answer is not None
        timing = ", ".join(f"{stage};dur={1000 * request.seconds.get(stage, 0.0):.3f}" for stage in STAGES[:-1])
        headers = (("server-timing", timing),)
        await exchange.answer(200, request.answer, request.form.media_type, headers, close=self.draining)

    def _record(self, exchange: Exchange, seconds: dict[str, float]) -> None:
        """Update the metrics and log an answered request."""
        times = {**seconds, "total": time.perf_counter() - exchange.started}
        self.row.count_request(exchange.status, exchange.received, exchange.sent, times.items())
        if self.settings.request_log:
            self.log.write(
                "request",
                request_id=exchange.request_id,
                status=exchange.status,
                received=exchange.received,
                sent=exchange.sent,
                content_type=exchange.headers.get("content-type", "")[:80],
                **{f"{stage}_ms": round(1000 * value, 3) for stage, value in times.items()},
            )


class App(Starlette):
    """Starlette, except that POST /invocations bypasses routing and middleware.

    Each forward pass evicts the CPU caches, so routing and middleware cost several times more than in a loop of empty
    requests. This path does not need them: it answers its own errors.
    """

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == INVOCATIONS and scope["method"] == "POST":
            await self.state.service.invocations(Exchange(scope, receive, send))
        else:
            await super().__call__(scope, receive, send)


class _Endpoint:
    """ASGI app of one path (see pspnet.serving.protocol.exchange)."""

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._handle(Exchange(scope, receive, send))


def create_app(
    settings: ServeSettings | None = None,
    table: Table | None = None,
    slot: int = 0,
    log: JsonLog | None = None,
    on_started: Callable[[Exception | None], None] = lambda _: None,
    listen_when_ready: bool = False,
) -> Starlette:
    """Return the app. Its lifespan starts and stops the model thread; `app.state.service` is the Service.

    Args:
        settings: read from PSPNET_* variables if None; raises ConfigError for invalid ones.
        table, slot: the metrics of all workers, and the index of this worker's row.
        on_started: as for Engine.
        listen_when_ready: delay the server's startup until the model is ready; for a worker that replaces another one
            while the rest keep serving.
    """
    settings = settings or ServeSettings.from_environment(os.environ)
    table, log = table or Table(), log or JsonLog(worker=slot)
    started, loops, loaded = asyncio.Event(), list[asyncio.AbstractEventLoop](), list[Predictor]()

    def load() -> Predictor:
        loaded.append(load_predictor(settings, slot))
        return loaded[0]

    def model_started(error: Exception | None) -> None:
        if isinstance(error, PspnetError):  # the user can fix it: no traceback
            log.write("model_failed", error=f"{type(error).__name__}: {error}")
        elif error is not None:
            log.error("model_failed", error)
        else:
            _log_runtime_failures(log, loaded[0])
        on_started(error)
        for loop in loops:
            _call(loop, started.set)

    engine = Engine(
        load, settings, table.rows[slot], settings.queue, settings.max_batch, settings.warmup_width_height(),
        settings.stuck_seconds, model_started,
    )  # fmt: skip
    service = Service(settings, engine, table, slot, log)

    app = App(
        routes=[
            Route("/ping", _Endpoint(service.ping), methods=["GET"]),
            Route(INVOCATIONS, _Endpoint(service.invocations), methods=["POST"]),
            Route("/metrics", _Endpoint(service.metrics), methods=["GET"]),
            Route("/openapi.json", lambda _: JSONResponse(openapi_schema()), methods=["GET"]),
        ],
        lifespan=_lifespan(service, loops, started if listen_when_ready else None),
        exception_handlers={HTTPException: service.not_found},  # type: ignore[dict-item]
    )
    app.state.service = service
    return app


def _log_runtime_failures(log: JsonLog, predictor: Predictor) -> None:
    """Log each runtime that `auto` could not use; only the latency would show it otherwise."""
    choices: dict[object, Choice] = getattr(predictor.runtime, "choices", {})
    failed = {name: reason for choice in choices.values() for name, reason in choice.failed.items()}
    for name, reason in failed.items():
        log.write("runtime_failed", runtime=name, reason=reason)


def _lifespan(
    service: Service, loops: list[asyncio.AbstractEventLoop], wait_for: asyncio.Event | None
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    """Return a lifespan that starts and stops the engine, and appends the app's event loop to `loops`."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        service.row.begin()
        heartbeat = asyncio.ensure_future(_send_heartbeats(service))
        service.engine.start()
        if wait_for is not None:
            await wait_for.wait()
        yield
        heartbeat.cancel()
        service.engine.abort()
        await loops[0].run_in_executor(None, service.engine.join, 5.0)
        service.log.close()

    return lifespan


async def _send_heartbeats(service: Service) -> None:
    """Update the heartbeat of this event loop every second, for the supervisor."""
    while True:
        service.row.heartbeat()
        await asyncio.sleep(1.0)


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
    _call(loop, _set, done)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Schedule a function on the loop from another thread; ignored if the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
