"""What the service promises of connections, tried over TLS against one server that asks for a key (row P19).

Everything goes over plain sockets: what is sent in part, or not at all, is the point.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import load
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' certificate

READ = 2
"""Seconds that a caller has to send a head, and as many for a body, in these trials."""
IDLE = 8.0
"""Seconds that are waited for a connection without a request to be closed."""
STOP = 20.0
"""Seconds in which a server that is told to stop has to have ended; it gives running requests 10."""
LARGE = 70_000
"""Bytes of a head that is too large: the service takes 65,536."""
BEYOND = ("HTTP/2",)
"""What is tried and not promised."""


@dataclass(frozen=True)
class Tried:
    kept: bool
    seen: str


def secured(root: Path) -> str:
    """Have a project ask for a key, which is returned, speak TLS, and work on one request at once."""
    from test_service_access import certificate

    from zoo.service.access import READ as ROLE
    from zoo.service.access import add_key

    certificate(root)
    with (root / "zoo.toml").open("a") as file:
        file.write(f"read_timeout = {READ}\nin_flight = 1\n[service.auth]\nkeys = 'keys.json'\n")
        file.write("[service.tls]\ncertificate = 'certificate.pem'\nkey = 'key.pem'\n")
    return add_key(root / "keys.json", "bench", [ROLE])


def options(root: Path) -> list[str]:
    """Granian's for the same."""
    own = ["--ssl-certificate", str(root / "certificate.pem"), "--ssl-keyfile", str(root / "key.pem")]
    own += ["--http1-buffer-size", "65536", "--http1-header-read-timeout", f"{READ * 1000}", "--workers-kill-timeout", "10"]
    return own


@contextlib.contextmanager
def _connected(port: int, secure: bool = True, protocols: tuple[str, ...] = ()) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        if not secure:
            yield plain
            return
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it signs itself, and who answers is no part of this
        if protocols:
            context.set_alpn_protocols([*protocols])
        with context.wrap_socket(plain) as wrapped:
            yield wrapped


def _heard(caller: socket.socket, seconds: float) -> tuple[int, bytes, bool]:
    """(status or 0, what came, whether the server ended the connection) until an answer is whole, or the time is over."""
    got, until = b"", time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        caller.settimeout(left)
        try:
            part = caller.recv(65_536)
        except TimeoutError:
            break
        except OSError:
            return _status(got), got, True
        if not part:
            return _status(got), got, True
        got += part
        head, whole, body = got.partition(b"\r\n\r\n")
        length = load.LENGTH.search(head)
        if whole and length is not None and len(body) >= int(length[1]):
            break
    return _status(got), got, False


def _status(got: bytes) -> int:
    found = re.match(rb"HTTP/1\.[01] (\d{3})", got)
    return int(found[1]) if found else 0


def alive(port: int, secure: bool) -> bool:
    try:
        with _connected(port, secure) as caller:
            caller.sendall(load.get("/health/live"))
            return _heard(caller, 5)[0] == 200
    except OSError:
        return False


def _sent(port: int, content: bytes, seconds: float) -> tuple[int, str]:
    """(status or 0, what was seen) of these bytes, after which nothing follows."""
    began = time.monotonic()
    with _connected(port) as caller:
        with contextlib.suppress(OSError):  # a server may answer and close before it read all
            caller.sendall(content)
        status, got, closed = _heard(caller, seconds)
    _, _, body = got.partition(b"\r\n\r\n")
    told = f"{status or 'no answer'}{' with a JSON body that says why' if body.startswith(b'{') and status >= 400 else ''}"
    return (status or -1 if closed else status), f"{told}{', closed' if closed else ''} after {time.monotonic() - began:.1f} s"


def _asking(key: str | None) -> bytes:
    return load.post("/v1/predict", {"model": "churn", "users": [1]}, f"Authorization: Bearer {key}\r\n" if key else "")


def _announcing(length: int, key: str | None) -> bytes:
    """The head of a request with so long a body."""
    head, _, _ = _asking(key).partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % length, head) + b"\r\n\r\n"


def busy(port: int, key: str) -> Tried:
    """One request is worked on, which waits for its body; what happens to another."""
    whole, status, got = _asking(key), 0, b""
    with _connected(port) as first:
        first.sendall(whole[:-1])
        time.sleep(0.3)
        try:
            with _connected(port) as second:
                second.sendall(whole)
                status, got, _ = _heard(second, READ / 2)
        except TimeoutError:
            return Tried(False, "waits, its connection is not accepted")
        first.sendall(whole[-1:])
        _heard(first, 5)
    again = re.search(rb"\r\nretry-after: *\d+", got, re.IGNORECASE)
    return Tried(status == 503 and again is not None, f"{status or 'waits, no answer'}{', Retry-After' if again else ''}")


def _idle(port: int) -> Tried:
    with _connected(port) as caller:
        caller.sendall(load.get("/health/live"))
        _heard(caller, 5)
        began = time.monotonic()
        _, _, closed = _heard(caller, IDLE)
    return Tried(closed, f"closed after {time.monotonic() - began:.1f} s" if closed else f"open after {IDLE:.0f} s")


def _protocol(port: int) -> tuple[Tried, Tried]:
    with _connected(port, protocols=("h2", "http/1.1")) as caller:
        assert isinstance(caller, ssl.SSLSocket)
        version, chosen = caller.version(), caller.selected_alpn_protocol()
    return Tried(version is not None, str(version)), Tried(chosen == "h2", f"ALPN {chosen}")


def _stop(port: int, process: psutil.Process, key: str) -> dict[str, Tried]:
    """SIGTERM while one request still sends its body and another connection is stalled within a head."""
    whole = _asking(key)
    with _connected(port) as running, _connected(port) as stalled:
        running.sendall(whole[:-1])
        stalled.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        process.terminate()
        time.sleep(0.5)
        refused = not alive(port, True)
        status = 0
        with contextlib.suppress(OSError):
            running.sendall(whole[-1:])
            status, _, _ = _heard(running, 5)
        _, alive_still = psutil.wait_procs([process], timeout=STOP)
    seconds = time.monotonic() - began
    return {
        "a stop lets what runs be answered": Tried(status == 200, f"{status or 'no answer'}"),
        "a stop refuses new connections": Tried(refused, "refused" if refused else "answered"),
        "a stop has an end": Tried(
            not alive_still, f"ended after {seconds:.1f} s" if not alive_still else f"runs after {STOP} s"
        ),
    }


def tried(port: int, process: psutil.Process, key: str) -> dict[str, Tried]:
    """Each promise, and what was seen. The server has ended afterwards."""
    large, got = b"x" * LARGE, {}

    def expect(what: str, content: bytes, right: Callable[[int], bool], seconds: float) -> None:
        status, seen = _sent(port, content, seconds)
        got[what] = Tried(right(status), seen)

    live = load.get("/health/live")
    expect("a head over 64 KiB is refused", live[:-2] + b"X: %b\r\n\r\n" % large, lambda s: s == 431, 3)
    expect("a target over 64 KiB is refused", live.replace(b"live", b"live?" + large, 1), lambda s: s in (414, 431), 3)
    expect("a caller slow within a head is left", live[:-2], lambda s: s in (-1, 408), 2.5 * READ)
    expect("a caller slow within a body is left", _asking(key)[:-1], lambda s: s in (-1, 408), 2.5 * READ)
    expect("no key: refused before a body", _announcing(100_000, None), lambda s: s == 401, 1)
    expect("too long a body: refused before it", _announcing(10**9, key), lambda s: s == 413, 1)
    got["too much work: 503 and Retry-After"] = busy(port, key)
    got["an idle connection is closed"] = _idle(port)
    got["TLS"], got["HTTP/2"] = _protocol(port)
    return {**got, **_stop(port, process, key)}
