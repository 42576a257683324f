"""The outermost layer of the application: what must not be looked at is refused there, and no exception reaches the server."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zoo.service.problems import problem, too_large

PORT = re.compile(r":\d*$")

_log = logging.getLogger(__name__)


@dataclass
class Guard:
    """ASGI middleware. limit: bytes of a body, stated or not. hosts: names that a request may call this server by; None for any.

    A page elsewhere may point a name of its own at a loopback address (DNS rebinding); its requests then carry that name.
    An exception that passed every handler is logged and answered with 500 here, because a server that sees it closes the
    connection, which fails the next request of a client that keeps it open.
    """

    app: ASGIApp
    limit: int
    hosts: Collection[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = PORT.sub("", headers.get("host", "")).lower()
        if self.hosts is not None and host not in self.hosts:
            refused = problem(
                421, "wrong_host", f"the request is for host {host!r}; this server answers to {', '.join(self.hosts)}"
            )
            await refused(scope, receive, send)
            return
        if int(headers.get("content-length", "0")) > self.limit:
            await too_large(self.limit)(scope, receive, send)
            return
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
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise
            await problem(500, "internal", "the server met an error that it did not expect; its log says which")(
                scope, receive, send
            )
