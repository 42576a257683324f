"""A load generator for one HTTP service on this machine: standard library only, kept connections, closed or open loop."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


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


class Connection:
    def __init__(self, port: int) -> None:
        self._port, self._streams = port, None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Raises OSError or EOFError where the connection broke; the next request then opens another.

        A connection that the server closed while it was idle, which is its right, is opened anew first, as every HTTP client does.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            body = await reader.readexactly(length)
        except (OSError, EOFError):
            self.close()
            raise
        if b"connection: close" in lines:
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _send(connection: Connection, request: bytes, seen: Seen, keep: bool) -> None:
    began = time.perf_counter()
    try:
        status, body = await connection.ask(request)
    except (OSError, EOFError):
        seen.failed += 1
        return
    seen.times.setdefault(status, []).append(time.perf_counter() - began)
    if keep and status == 200:
        seen.bodies.append(body)


async def closed(port: int, requests: list[bytes], connections: int, seconds: float, *, keep: bool = False) -> Seen:
    """So many connections, each asking again when it was answered."""
    seen, began = Seen(), time.perf_counter()

    async def one(number: int) -> None:
        own, at = Connection(port), number
        while time.perf_counter() - began < seconds:
            await _send(own, requests[at % len(requests)], seen, keep)
            at += connections
        own.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    seen.seconds = time.perf_counter() - began
    return seen


async def steady(
    port: int, requests: list[bytes], rate: float, seconds: float, *, keep: bool = False, until: asyncio.Event | None = None
) -> Seen:
    """So many requests a second whatever the answers do; one that finds no idle connection opens another."""
    seen, idle, running = Seen(), [], set()
    began, number = time.perf_counter(), 0

    async def one(request: bytes) -> None:
        own = idle.pop() if idle else Connection(port)
        await _send(own, request, seen, keep)
        idle.append(own)

    while time.perf_counter() - began < seconds and not (until and until.is_set()):
        due = int((time.perf_counter() - began) * rate) - number
        for _ in range(due):
            task = asyncio.create_task(one(requests[number % len(requests)]))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        await asyncio.sleep(0.001)
    seen.seconds = time.perf_counter() - began
    await asyncio.gather(*running)
    for connection in idle:
        connection.close()
    return seen
