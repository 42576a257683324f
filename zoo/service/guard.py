"""The outermost layer of the application: what must not be looked at is refused there, and no exception reaches the server."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zoo.service.access import Access, Refusal, Rule, Rules
from zoo.service.load import Limiter
from zoo.service.metrics import Metrics
from zoo.service.problems import problem, too_large
from zoo.spans import failed, serving, trace_id

PORT = re.compile(r":\d*$")
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
THREADS = (os.cpu_count() or 1) + 2
"""Predictions computed at once: more than there are processors for only take turns, and keep refusals waiting for theirs."""
LATE = 0.02
"""Seconds past its deadline after which a request is answered without what it asked for."""
LONGEST_DEADLINE = 600_000
USUAL = 65_536
"""Bytes of a body up to which its time counts as a sign of load."""

_log = logging.getLogger(__name__)
_access = logging.getLogger("zoo.access")


@dataclass
class Guard:
    """ASGI middleware. limit: bytes of a body, stated or not. hosts: names that a request may call this server by; None for any.

    Refusals come in this order: a wrong name, no valid credential for the route, too much work, too long a body; each before anything
    of the body is read. A page elsewhere may point a name of its own at a loopback address (DNS rebinding); its requests then
    carry that name. An exception that passed every handler is logged and answered with 500 here, because a server that sees it closes
    the connection, which fails the next request of a client that keeps it open.
    """

    app: ASGIApp
    limit: int
    hosts: Collection[str] | None = None
    rules: Rules = field(default_factory=Rules)
    access: Access | None = None
    limiter: Limiter = field(default_factory=Limiter)
    metrics: Metrics = field(default_factory=Metrics)
    threads: int = THREADS
    _bounded: bool = field(default=False, repr=False)
    _running: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        if not self._bounded:
            self._bounded = True  # the pool belongs to the event loop, so it is known from the first request on
            current_default_thread_limiter().total_tokens = self.threads
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        rule = self.rules.find(scope["method"], scope["path"])
        given = headers.get(b"x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", name.encode()))
            await send(message)

        route, method = rule.path if rule else "(none)", scope["method"] if rule else "(any)"
        whole = {"http.request.method": method, "http.route": route}
        told = {"traceparent": headers.get(b"traceparent", ""), "tracestate": headers.get(b"tracestate", "")}
        trace = None
        try:
            with serving(f"{method} {route}", told, whole) as part:
                trace = trace_id(part)
                try:
                    await self._answer(scope, receive, send_named, headers, rule, began)
                finally:
                    part.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        failed(part, str(status))
        finally:
            seconds = time.perf_counter() - began
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            if _access.isEnabledFor(logging.INFO):
                facts = {
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1e3, 2),
                    "request_id": name,
                } | ({} if trace is None else {"trace_id": trace})
                _access.info("request", extra={"facts": facts})

    def _refusal(self, headers: dict[bytes, str], rule: Rule | None) -> Refusal | None:
        host = PORT.sub("", headers.get(b"host", "")).lower()
        if self.hosts is not None and host not in self.hosts:
            told = f"the request is for host {host!r}; this server answers to {', '.join(self.hosts)}"
            return Refusal(421, "wrong_host", told)
        if self.access is None:
            return None
        return self.access.refused(headers.get(b"authorization"), None if rule is None else rule.role)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, str], rule: Rule | None, began: float
    ) -> None:
        refusal, path = self._refusal(headers, rule), scope["path"]
        if refusal is not None:
            self.metrics.refused.labels(refusal.kind).inc()
            challenge = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
            await problem(refusal.status, refusal.kind, refusal.message, challenge, path)(scope, receive, send)
            return
        within = deadline_of(headers)
        if within is not None and not 0 < within <= LONGEST_DEADLINE / 1e3:
            told = f"X-Deadline-Ms is {headers[b'x-deadline-ms'][:40]!r}; expected milliseconds, 1 to {LONGEST_DEADLINE}"
            await problem(400, "invalid_deadline", told, path=path)(scope, receive, send)
            return
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.limit:
            await too_large(self.limit, path)(scope, receive, send)
            return
        if rule is None or "POST" not in rule.methods:
            await self._run(scope, receive, send)
            return
        if not self.limiter.enter(within):
            self.metrics.refused.labels("overloaded").inc()
            told = "the server has as much work as it can answer in time; try again after the seconds that Retry-After says"
            await problem(503, "overloaded", told, {"Retry-After": "1"}, path)(scope, receive, send)
            return
        self.metrics.running.inc()
        usual = int(length) <= USUAL
        if within is None:
            try:
                await self._run(scope, receive, send)
            finally:
                self._leave(began, usual)
            return
        await self._until(scope, receive, send, began, within, usual)

    def _leave(self, began: float, usual: bool) -> None:
        self.limiter.leave(time.perf_counter() - began, work=usual)
        self.metrics.running.dec()

    async def _until(self, scope: Scope, receive: Receive, send: Send, began: float, within: float, usual: bool) -> None:
        """Answer by the deadline, whatever the work does; it goes on and keeps its place in the limit until it ends."""
        scope["zoo.until"] = began + within
        started = given_up = False

        async def send_in_time(message: Message) -> None:
            nonlocal started
            if not given_up:
                started = True
                await send(message)

        work = asyncio.ensure_future(self._run(scope, receive, send_in_time))
        self._running.add(work)  # a loop holds its tasks weakly
        work.add_done_callback(self._running.discard)
        work.add_done_callback(lambda _: self._leave(began, usual))
        await asyncio.wait({work}, timeout=began + within + LATE - time.perf_counter())
        if work.done() or started:
            await work
            return
        given_up = True
        self.metrics.refused.labels("deadline").inc()
        told = f"no answer within the {within * 1e3:.0f} ms of X-Deadline-Ms; a push may be durable all the same"
        await problem(504, "deadline", told, path=scope["path"])(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, started = 0, False

        async def receive_up_to_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413)  # the one kind of exception that FastAPI lets through while it reads a body
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


def deadline_of(headers: dict[bytes, Any]) -> float | None:
    """Seconds that the caller waits; None without the header, 0 for one that is no number of milliseconds."""
    text = headers.get(b"x-deadline-ms")
    if text is None:
        return None
    return int(text) / 1e3 if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0
