"""A TCP proxy before a real server that fails as networks do: it refuses, resets in the middle of a reply, or holds replies back."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Passes connections on to a server.

    cut: the number of bytes of the coming replies after which their connection is reset, None for none. cuts: how many resets are left.
    politely: closed as if that were all, instead of reset. flowing: while it is not set, replies are held back; delay: seconds that each is
    late. port: where it listens; 0 for any that is free.
    """

    def __init__(self, server: tuple[str, int], port: int = 0) -> None:
        self.server = server
        self.cut: int | None = None
        self.cuts = 0
        self.politely = False
        self.delay = 0.0
        self.flowing = threading.Event()
        self.flowing.set()
        self.port = port
        self._open: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        """Listen, again after ``close``."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(self.server)
            except OSError:  # the server is not there, and so neither are we
                reset(client)
                continue
            self._open += [client, upstream]
            threading.Thread(target=self._ask, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._answer, args=(client, upstream), daemon=True).start()

    @staticmethod
    def _ask(client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                upstream.sendall(data)
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)

    def _answer(self, client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(1 << 16):
                self.flowing.wait()
                if self.delay:
                    time.sleep(self.delay)
                if self.cut is not None and self.cuts > 0:
                    self.cuts -= 1
                    client.sendall(data[: self.cut])
                    if self.politely:
                        break
                    reset(client)
                    return
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Reset every connection that is open."""
        while self._open:
            reset(self._open.pop())

    def close(self) -> None:
        """Refuse connections from here on, and reset those that are open."""
        # a shutdown wakes the accepting thread, a close alone would leave the port open until it does
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flowing.set()
        self.drop()


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    connection.close()


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """A proxy before the server of a Redis URL."""
    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    proxy = Proxy((host, int(port)))
    try:
        yield proxy
    finally:
        proxy.close()
