"""A load generator for one HTTP service on this machine: standard library only, kept connections, closed or open loop.

It is written in callbacks: generator and server share the processors, and what one takes the other lacks.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass
class Seen:
    """What came back. times: seconds by status; bodies: of answers of 200, where they are kept; failed: connections that broke."""

    times: dict[int, list[float]] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    def rate(self, status: int = 200) -> float:
        return len(self.times.get(status, ())) / self.seconds if self.seconds else 0.0


def post(path: str, body: Any, headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    return head.encode() + content


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Connection(asyncio.Protocol):
    """One kept connection, for one request at a time. Answers must state their length."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._told: Callable[[int, bytes], None] | None = None
        self._opening: asyncio.Future[None] | None = None  # a loop holds its tasks weakly
        self._got = b""

    def send(self, request: bytes, told: Callable[[int, bytes], None]) -> None:
        """Ask, and tell status and body when they are there; status 0 where the connection broke.

        A connection that the server closed while it was idle, which is its right, is opened anew first, as every HTTP client does.
        """
        self._told = told
        if self._transport is None:
            self._opening = asyncio.ensure_future(self._open(request))
        else:
            self._transport.write(request)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Raises OSError where the connection broke; the next request then opens another."""
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.send(request, lambda *told: answer.set_result(told))
        status, body = await answer
        if not status:
            raise ConnectionError(f"the connection to port {self._port} broke")
        return status, body

    def close(self) -> None:
        if self._transport is not None:
            self._transport.set_protocol(asyncio.Protocol())  # its end is not that of the one which is opened next
            self._transport.close()
            self._transport = None

    async def _open(self, request: bytes) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        except OSError:
            self._tell(0, b"")
            return
        assert self._transport is not None
        self._transport.write(request)

    def _tell(self, status: int, body: bytes) -> None:
        told, self._told, self._got = self._told, None, b""
        if told is not None:
            told(status, body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, whole, body = self._got.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not whole or length is None or len(body) < int(length[1]):
            return
        if CLOSE.search(head):
            self.close()
        self._tell(int(head[9:12]), body)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._tell(0, b"")


def _noted(seen: Seen, began: float, keep: bool, status: int, body: bytes) -> None:
    """began: when the request was to be sent."""
    if not status:
        seen.failed += 1
        return
    seen.times.setdefault(status, []).append(time.perf_counter() - began)
    if keep and status == 200:
        seen.bodies.append(body)


async def closed(port: int, requests: list[bytes], connections: int, seconds: float, *, keep: bool = False) -> Seen:
    """So many connections, each asking again when it was answered."""
    seen, began, done = Seen(), time.perf_counter(), asyncio.Event()
    own = [Connection(port) for _ in range(connections)]
    left = connections

    def ask(number: int, at: int) -> None:
        nonlocal left
        sent = time.perf_counter()
        if sent - began >= seconds:
            left -= 1
            if not left:
                done.set()
            return

        def told(status: int, body: bytes) -> None:
            _noted(seen, sent, keep, status, body)
            ask(number, at + connections)

        own[number].send(requests[at % len(requests)], told)

    for number in range(connections):
        ask(number, number)
    await done.wait()
    for each in own:
        each.close()
    seen.seconds = time.perf_counter() - began
    return seen


async def steady(
    port: int, requests: list[bytes], rate: float, seconds: float, *, keep: bool = False, until: asyncio.Event | None = None
) -> Seen:
    """So many requests a second whatever the answers do; one that finds no idle connection opens another.

    A request's time begins when it was due, so what the generator itself was late counts.
    """
    seen, idle = Seen(), list[Connection]()
    running, done = 0, asyncio.Event()
    began, number = time.perf_counter(), 0

    def ask(request: bytes, due: float) -> None:
        nonlocal running
        own = idle.pop() if idle else Connection(port)

        def told(status: int, body: bytes) -> None:
            nonlocal running
            _noted(seen, due, keep, status, body)
            idle.append(own)
            running -= 1
            done.set()

        running += 1
        own.send(request, told)

    while (now := time.perf_counter() - began) < seconds and not (until and until.is_set()):
        while number < now * rate:
            ask(requests[number % len(requests)], began + number / rate)
            number += 1
        await asyncio.sleep(0.001)
    seen.seconds = time.perf_counter() - began
    while running:
        done.clear()
        await done.wait()
    for connection in idle:
        connection.close()
    return seen
