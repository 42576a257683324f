"""Whether a request is let in: decided once, from its method, path and headers, before anything of its body is read."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from random import getrandbits

from zoo.service.access import Access, Rule, Rules
from zoo.service.load import Limiter
from zoo.service.metrics import Metrics
from zoo.service.problems import MAX_BODY, READ_TIMEOUT, Refusal, too_large

PORT = re.compile(r":\d*$")
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PARTICULAR = b"x-request-id", b"transfer-encoding", b"expect", b"upgrade"
"""Headers of requests that are looked at one by one."""
LONGEST_DEADLINE = 600_000
USUAL = 65_536
"""Bytes of a body up to which its time counts as a sign of load."""
DEAR = frozenset({"/v1/explain"})
"""Routes whose time is no sign of it: their work is that of many predictions, and done a few at a time."""
OVERLOADED = Refusal(
    503,
    "overloaded",
    "the server has as much work as it can answer in time; try again after the seconds that Retry-After says",
    (("Retry-After", "1"),),
)

_access = logging.getLogger("zoo.access")


@dataclass(slots=True)
class Request:
    """What is known of a request before its body. headers: by name in lower case.

    name: its id, the caller's or ours. began: of ``time.perf_counter()``. within: seconds that its caller waits. usual: whether its time
    is a sign of load. counted: whether it is among those that the limiter counts.
    """

    method: str
    path: str
    headers: dict[bytes, str]
    rule: Rule | None
    name: str
    began: float
    within: float | None = None
    usual: bool = True
    counted: bool = False

    @property
    def route(self) -> str:
        return self.rule.path if self.rule else "(none)"


@dataclass
class Admission:
    """The door of one application. limit: bytes of a body, stated or not. read_timeout: seconds that a caller may take to send a head, and
    its body; 0 for any time. hosts: what a request may call this server; None for anything.
    give_way: what the event loop calls after it refused all that came for want of time, see ``Batches.give_way``. heads: of requests that
    were refused so, and the length of each with its body, see ``Protocol``.

    Refusals come in this order: a wrong name, no valid credential for the route, a deadline that cannot be meant, too long a body, too
    much work. A page elsewhere may point a name of its own at a loopback address (DNS rebinding); its requests then carry that name.
    """

    limit: int = MAX_BODY
    read_timeout: float = READ_TIMEOUT
    hosts: Collection[str] | None = None
    rules: Rules = field(default_factory=Rules)
    access: Access | None = None
    limiter: Limiter = field(default_factory=Limiter)
    metrics: Metrics = field(default_factory=Metrics)
    give_way: Callable[[], None] = lambda: None
    heads: dict[bytes, tuple[Request, int]] = field(default_factory=dict, repr=False)
    _giving: bool = field(default=False, repr=False)

    def request(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Request:
        began = time.perf_counter()
        # spaces and tabs around a value are no part of it (RFC 9110, 5.5), and parsers leave those at its end
        found = {name: value.strip(b" \t").decode("latin-1") for name, value in headers}
        given = found.get(b"x-request-id", "")
        return Request(
            method, path, found, self.rules.find(method, path), given if REQUEST_ID.fullmatch(given) else named(), began
        )

    def alike(self, request: Request) -> bool:
        """Whether another request with the very bytes of this one's head is refused like it while there is too much work."""
        return self.access is None and request.headers.keys().isdisjoint(PARTICULAR)

    def refusal(self, request: Request) -> Refusal | None:
        """Why this request is refused, which is counted; None for one that is let in, which counts as running until ``leave``."""
        refusal = self._refusal(request)
        return None if refusal is None else self.refused(refusal)

    def refused(self, refusal: Refusal) -> Refusal:
        """Count one."""
        self.metrics.refused(refusal.kind).inc()
        return refusal

    def _refusal(self, request: Request) -> Refusal | None:
        headers, rule = request.headers, request.rule
        if self.hosts is not None and (host := _host(headers.get(b"host", ""))) not in self.hosts:
            told = f"the request is for host {host!r}; this server answers to {', '.join(self.hosts)}"
            return Refusal(421, "wrong_host", told)
        if self.access is not None:
            refused = self.access.refused(headers.get(b"authorization"), None if rule is None else rule.role)
            if refused is not None:
                return refused
        within = request.within = _deadline(headers.get(b"x-deadline-ms"))
        if within is not None and not 0 < within <= LONGEST_DEADLINE / 1e3:
            told = f"X-Deadline-Ms is {headers[b'x-deadline-ms'][:40]!r}; expected milliseconds, 1 to {LONGEST_DEADLINE}"
            return Refusal(400, "invalid_deadline", told)
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.limit:
            return too_large(self.limit)
        if rule is None or "POST" not in rule.methods:
            return None
        if not self.limiter.enter(within):
            return OVERLOADED
        self.metrics.running.inc()
        request.usual, request.counted = int(length) <= USUAL and rule.path not in DEAR, True
        return None

    def refused_again(self, request: Request) -> None:
        """Another request like this one, which was refused for want of time, is refused; the object stands for it from here on."""
        request.name, request.began = named(), time.perf_counter()
        self.metrics.refused(OVERLOADED.kind).inc()

    def give_way_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the event loop give way when it has gone through what it read."""
        if not self._giving:
            self._giving = True
            loop.call_soon(self._give_way)

    def _give_way(self) -> None:
        self._giving = False
        self.give_way()

    def leave(self, request: Request) -> None:
        """A request that was let in has ended."""
        if request.counted:
            request.counted = False
            self.limiter.leave(time.perf_counter() - request.began, work=request.usual)
            self.metrics.running.dec()

    def answered(self, request: Request, status: int, trace: str | None = None) -> None:
        """Count and log an answer. trace: the id of its trace."""
        seconds, route = time.perf_counter() - request.began, request.route
        self.metrics.requests(route, status).inc()
        self.metrics.seconds(route).observe(seconds)
        if _access.isEnabledFor(logging.INFO):
            facts = {
                "method": request.method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "request_id": request.name,
            } | ({} if trace is None else {"trace_id": trace})
            _access.info("request", extra={"facts": facts})


def named() -> str:
    """An id of a request that has none."""
    return f"{getrandbits(128):032x}"


@lru_cache(64)
def _host(host: str) -> str:
    """The name of a Host header, without its port."""
    return PORT.sub("", host).lower()


def _deadline(text: str | None) -> float | None:
    """Seconds that the caller waits; None without the header, 0 for one that is no number of milliseconds."""
    if text is None:
        return None
    return int(text) / 1e3 if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0
