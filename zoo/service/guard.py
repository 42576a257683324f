"""The outermost layer of the application: what admission refuses ends there, deadlines are kept, and no exception reaches the server."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import Request as Http
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zoo.errors import LateError
from zoo.service.admission import Admission, Request
from zoo.service.problems import problem
from zoo.spans import failed, serving, trace_id

LATE = 0.02
"""Seconds past its deadline after which a request is answered without what it asked for."""
LET_IN = "zoo.let_in"
"""Key of a scope: the ``Request`` that was let in before the application was called, see ``zoo.service.protocol``."""
UNTIL = "zoo.until"
"""Key of a scope: the instant, of ``time.perf_counter()``, by which its request has to be answered."""
TOO_SLOW = "zoo.too_slow"
"""Key of a scope: the ``Refusal`` of a request whose body is no longer waited for."""

_log = logging.getLogger(__name__)


def in_time(http: Http) -> float | None:
    """Seconds that an answer may take; nothing is begun for a caller who has gone (LateError)."""
    until = http.scope.get(UNTIL)
    if until is None:
        return None
    if (left := until - time.perf_counter()) <= 0:
        raise LateError("the deadline passed before work on this began")
    return float(left)


@dataclass
class Guard:
    """ASGI middleware. An exception that passed every handler is logged and answered with 500 here, because a server that sees it closes
    the connection, which fails the next request of a client that keeps it open.
    """

    app: ASGIApp
    admission: Admission = field(default_factory=Admission)
    _running: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        let_in: Request | None = scope.get(LET_IN)
        request = let_in or self.admission.request(scope["method"], scope["path"], scope["headers"])
        status = 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request.name.encode()))
            await send(message)

        route, method = request.route, request.method if request.rule else "(any)"
        whole = {"http.request.method": method, "http.route": route}
        told = {name: request.headers.get(name.encode(), "") for name in ("traceparent", "tracestate")}
        trace = None
        try:
            with serving(f"{method} {route}", told, whole) as part:
                trace = trace_id(part)
                try:
                    await self._answer(scope, receive, send_named, request, let_in is not None)
                finally:
                    part.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        failed(part, str(status))
        finally:
            self.admission.answered(request, status, trace)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request: Request, let_in: bool) -> None:
        refusal = None if let_in else self.admission.refusal(request)
        if refusal is not None:
            await refusal.answer(request.path)(scope, receive, send)
        elif request.counted and request.within is not None:
            await self._until(scope, receive, send, request, request.within)
        else:
            try:
                await self._run(scope, receive, send)
            finally:
                self.admission.leave(request)

    async def _until(self, scope: Scope, receive: Receive, send: Send, request: Request, within: float) -> None:
        """Answer by the deadline, whatever the work does; it goes on and keeps its place in the limit until it ends."""
        until = scope[UNTIL] = request.began + within
        started = given_up = False

        async def send_in_time(message: Message) -> None:
            nonlocal started
            if not given_up:
                started = True
                await send(message)

        work = asyncio.ensure_future(self._run(scope, receive, send_in_time))
        self._running.add(work)  # a loop holds its tasks weakly
        work.add_done_callback(self._running.discard)
        work.add_done_callback(lambda _: self.admission.leave(request))
        await asyncio.wait({work}, timeout=until + LATE - time.perf_counter())
        if work.done() or started:
            await work
            return
        given_up = True
        self.admission.metrics.refused("deadline").inc()
        told = f"no answer within the {within * 1e3:.0f} ms of X-Deadline-Ms; a push may be durable all the same"
        await problem(504, "deadline", told, path=request.path)(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, started = 0, False

        async def receive_up_to_limit() -> Message:
            nonlocal size
            message = await receive()
            # HTTPException is the one kind of exception that FastAPI lets through while it reads a body
            if TOO_SLOW in scope and message.get("more_body"):
                refusal = self.admission.refused(scope[TOO_SLOW])
                raise HTTPException(refusal.status, refusal.message)
            size += len(message.get("body", b""))
            if size > self.admission.limit:
                raise HTTPException(413)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive_up_to_limit, send_and_note)
        except Exception:
            _log.exception("%s failed", scope["method"])
            if started:
                raise
            told = "the server met an error that it did not expect; its log says which"
            await problem(500, "internal", told, path=scope["path"])(scope, receive, send)
