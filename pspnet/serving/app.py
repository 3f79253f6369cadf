"""The endpoint as a FastAPI app: GET /ping, POST /invocations, GET /metrics.

`create_app` is an ASGI factory: `uvicorn --factory pspnet.serving.app:create_app` serves the model directory that
PSPNET_MODEL_DIR names, in any container that runs such apps. `pspnet serve` adds the supervision of its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

import pspnet
from pspnet.errors import PspnetError
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Predictor
from pspnet.inference.runtimes.trials import Choice
from pspnet.serving.engine import Engine
from pspnet.serving.jobs import BUSY, CancelledJobError, Job
from pspnet.serving.loading import load_predictor
from pspnet.serving.openapi import PATHS
from pspnet.serving.processes.json_log import JsonLog
from pspnet.serving.processes.server_metrics import CONTENT_TYPE, STAGES, Table
from pspnet.serving.protocol.answers import choose_answer
from pspnet.serving.protocol.exchange import TEXT, ClientGoneError, Exchange, Receive, Send
from pspnet.serving.protocol.request_error import RequestError
from pspnet.serving.serve_settings import ServeSettings, read_settings

CLIENT_GONE = 499
INVOCATIONS = "/invocations"
# Bodies that are in memory at once, of all requests that are read or wait. Slow senders hold no place in the line, so
# nothing else would bound what they take.
_HELD_BYTES = 512_000_000


class Service:
    """What the routes share: the engine, the numbers, the log, and the answers to each kind of request."""

    def __init__(self, settings: ServeSettings, limits: Limits, engine: Engine, table: Table, slot: int, log: JsonLog):
        self.settings, self.limits, self.engine, self.table, self.log = settings, limits, engine, table, log
        self.row = table.rows[slot]
        self.draining = False
        self._held = 0

    async def ping(self, exchange: Exchange) -> None:
        """200 when the model answers, 503 with the reason when it does not; at the start, when all workers answer."""
        problem = self.engine.problem()
        if problem is None and self.table.starting_up:
            # The next request may reach a worker that is not ready, and a platform sends them after the first 200.
            problem = "Other workers are still loading the model."
        status, body = (200, b"") if problem is None else (503, problem.encode())
        await exchange.answer(status, body, TEXT, close=self.draining)

    async def metrics(self, exchange: Exchange) -> None:
        """The numbers of all workers."""
        await exchange.answer(200, self.table.render().encode(), CONTENT_TYPE, close=self.draining)

    async def invocations(self, exchange: Exchange) -> None:
        """An image in, its mask out."""
        seconds: dict[str, float] = {}
        try:
            try:
                job = await self._predict(exchange)
                seconds = job.seconds
                if job.error is not None:
                    raise job.error
                await self._answer_mask(exchange, job)
            except RequestError as error:
                await self.refuse(exchange, error)
            except (ClientGoneError, CancelledJobError):
                exchange.status = CLIENT_GONE
            except Exception as error:
                await self.fail(exchange, error)
        finally:
            self._record(exchange, seconds)

    async def not_here(self, request: Request, error: HTTPException) -> PlainTextResponse:
        """404 and 405, in words."""
        known = "this endpoint has GET /ping, POST /invocations and GET /metrics"
        if error.status_code == 405:
            text = f"{request.method[:20]} is not for {request.url.path[:80]}; {known}."
        else:
            text = f"There is nothing at {request.url.path[:80]}; {known}."
        self.row.request(error.status_code, 0, len(text), ())
        return PlainTextResponse(f"{text}\n", error.status_code, headers=error.headers)

    async def refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Answer with the error's sentence."""
        headers = (("retry-after", str(self.engine.retry_after())),) if error.status == 503 else ()
        await exchange.answer(error.status, f"{error}\n".encode(), TEXT, headers, close=self.draining)

    async def fail(self, exchange: Exchange, error: Exception) -> None:
        """A defect: the traceback goes to the log, and the caller gets what finds it there."""
        self.log.error("defect", error, request_id=exchange.request_id)
        if exchange.status == 0:
            text = f"The endpoint failed at this request, which it logged as {exchange.request_id}.\n"
            await exchange.answer(500, text.encode(), TEXT, close=self.draining)

    async def _predict(self, exchange: Exchange) -> Job:
        """The finished job of a request; raises RequestError before one is made, or ClientGoneError."""
        headers = exchange.headers
        form = choose_answer(headers.get("accept"), headers.get("x-amzn-sagemaker-custom-attributes"))
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, f"The body is compressed ({headers['content-encoding'][:40]}); send it as it is.")
        if self.engine.full:  # before the client has sent its image in vain
            raise RequestError(503, BUSY)
        try:
            body = await exchange.read_body(self.limits.request_bytes, self.settings.body_seconds, self._hold)
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            job = Job(body, headers.get("content-type"), form, lambda _: _wake(loop, done))
            self.engine.submit(job)
            await self._wait(exchange, job, done)
        finally:
            self._held -= exchange.received
        return job

    async def _wait(self, exchange: Exchange, job: Job, done: asyncio.Future[None]) -> None:
        """Until the job is done, or its client has gone: then nobody computes for it."""
        watcher = asyncio.ensure_future(exchange.gone())
        watcher.add_done_callback(lambda _: _set(done))
        try:
            await done
        finally:
            watcher.cancel()
            if job.answer is None and job.error is None:
                self.engine.cancel(job)
        if job.answer is None and job.error is None:
            raise ClientGoneError

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > _HELD_BYTES:
            raise RequestError(503, BUSY)

    async def _answer_mask(self, exchange: Exchange, job: Job) -> None:
        assert job.answer is not None
        timing = ", ".join(f"{stage};dur={1000 * job.seconds.get(stage, 0.0):.3f}" for stage in STAGES[:-1])
        headers = (("server-timing", timing),)
        await exchange.answer(200, job.answer, job.form.media_type, headers, close=self.draining)

    def _record(self, exchange: Exchange, seconds: dict[str, float]) -> None:
        """Count and log a request that has been answered."""
        times = {**seconds, "total": time.perf_counter() - exchange.started}
        self.row.request(exchange.status, exchange.received, exchange.sent, times.items())
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


class App(FastAPI):
    """FastAPI, but for POST /invocations, which goes straight to the service.

    A frame meets a processor whose caches the last one's network has swept. There the frames of routing and middleware
    cost several times what they cost in a loop of empty requests, and this path needs none of them: it answers its own
    errors.
    """

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == INVOCATIONS and scope["method"] == "POST":
            await self.state.service.invocations(Exchange(scope, receive, send))
        else:
            await super().__call__(scope, receive, send)


class _Endpoint:
    """One path of the app, straight on ASGI (see pspnet.serving.protocol.exchange)."""

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._handle(Exchange(scope, receive, send))


def create_app(
    settings: ServeSettings | None = None,
    limits: Limits | None = None,
    table: Table | None = None,
    slot: int = 0,
    log: JsonLog | None = None,
    on_started: Callable[[Exception | None], None] = lambda _: None,
    listen_when_ready: bool = False,
) -> FastAPI:
    """The app. Its lifespan starts the model's thread and ends it; `app.state.service` is the Service.

    Args:
        settings, limits: from PSPNET_* variables where they are None; ConfigError for those that cannot be used.
        table, slot: the numbers of all workers, and this one's row.
        on_started: as for Engine.
        listen_when_ready: hold the server's start until the model answers; for a worker that replaces another one
            while the rest serve on.
    """
    settings, limits = settings or read_settings(), limits or Limits.from_environment()
    table, log = table or Table(), log or JsonLog(worker=slot)
    started, loops, loaded = asyncio.Event(), list[asyncio.AbstractEventLoop](), list[Predictor]()

    def load() -> Predictor:
        loaded.append(load_predictor(settings, limits, slot))
        return loaded[0]

    def model_started(error: Exception | None) -> None:
        if isinstance(error, PspnetError):  # the user's to mend: no traceback
            log.write("model_failed", error=f"{type(error).__name__}: {error}")
        elif error is not None:
            log.error("model_failed", error)
        else:
            _tell_failures(log, loaded[0])
        on_started(error)
        for loop in loops:
            _call(loop, started.set)

    engine = Engine(
        load, limits, table.rows[slot], settings.queue, settings.max_batch, settings.warmup_size,
        settings.stuck_seconds, model_started,
    )  # fmt: skip
    service = Service(settings, limits, engine, table, slot, log)

    app = App(
        title="pspnet",
        version=pspnet.__version__,
        lifespan=_lifespan(service, loops, started if listen_when_ready else None),
        description="Semantic segmentation: image in, mask out.",
    )
    app.state.service = service
    app.router.routes += [
        Route("/ping", _Endpoint(service.ping), methods=["GET"]),
        Route(INVOCATIONS, _Endpoint(service.invocations), methods=["POST"]),
        Route("/metrics", _Endpoint(service.metrics), methods=["GET"]),
    ]
    _document(app)
    app.add_exception_handler(HTTPException, service.not_here)  # type: ignore[arg-type]
    return app


def _tell_failures(log: JsonLog, predictor: Predictor) -> None:
    """One line for each runtime that `auto` could not use: nothing else shows it but the speed."""
    choices: dict[object, Choice] = getattr(predictor.runtime, "choices", {})
    failed = {name: reason for choice in choices.values() for name, reason in choice.failed.items()}
    for name, reason in failed.items():
        log.write("runtime_failed", runtime=name, reason=reason)


def _lifespan(
    service: Service, loops: list[asyncio.AbstractEventLoop], wait_for: asyncio.Event | None
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """Starts the engine with the app and ends it with it; `loops` gets the loop that the app runs on."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        service.row.begin()
        heart = asyncio.ensure_future(_beat(service))
        service.engine.start()
        if wait_for is not None:
            await wait_for.wait()
        yield
        heart.cancel()
        service.engine.abort()
        await loops[0].run_in_executor(None, service.engine.join, 5.0)
        service.log.close()

    return lifespan


def _document(app: FastAPI) -> None:
    """Routes below FastAPI's own are not in its schema by themselves."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["paths"] = {**schema["paths"], **PATHS}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _beat(service: Service) -> None:
    """Tell the supervisor every second that this event loop runs."""
    while True:
        service.row.beat()
        await asyncio.sleep(1.0)


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
    _call(loop, _set, done)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Run a function on the loop, from another thread; a loop that has ended needs it no more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
