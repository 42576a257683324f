"""HTTP as uvicorn speaks it, except that a request which is not let in is answered where its headers were read.

Under overload most requests are refused, in the interpreter that computes the answers of the rest: without a task, the application's
layers and a response made of parts, a refusal takes a fraction of that time.
"""

from __future__ import annotations

import re
from asyncio import TimerHandle
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from zoo import spans
from zoo.service.admission import OVERLOADED, Admission, Request
from zoo.service.guard import LET_IN, TOO_SLOW
from zoo.service.problems import Refusal, too_slow

PLAIN = re.compile(rb"/[A-Za-z0-9_.@-][A-Za-z0-9_.@/-]*")
"""A target that is a path as it stands."""
END = b"\r\n\r\n"
LONGEST = 2_048
"""Bytes of a head that is remembered."""
MOST = 1_024
"""Heads that are; all are forgotten when there are more."""
MOST_HEAD = 65_536
"""Bytes that the target and headers of one request may have, or the trailers of one body."""
HEAD_TOO_LARGE = Refusal(
    431,
    "head_too_large",
    f"target and headers are larger than {MOST_HEAD} bytes; send what is long in the body of a POST request",
)
PART = 1.0
"""Seconds that a caller over TLS has to take leave when the server stops; one who keeps an idle connection never does."""
LONG = "zoo.long"
"""Key of a scope whose request has too large a head."""


class Protocol(HttpToolsProtocol):
    """For ``uvicorn.Config(http=...)`` and an application of ``zoo.service.app``, whose ``Admission`` decides here.

    What is sent of a refused body is read and forgotten. A request is left to the application, whose ``Guard`` asks the same
    ``Admission``, where spans are kept, or where the caller does not read its answers, which then have to wait.

    A head, or the trailers of a body, that is too large is refused when it is seen to be, and a caller who is too slow to send a request is
    refused or left: from the connection, or the first byte of a later request, until the head is whole, and from there until the body is.
    Time in which the caller waits for us does not count. Between requests uvicorn's own time counts, for idle connections.

    Callers send the same head again and again. While there is too much work, one whose very bytes were refused before, and whose body came
    with it, is refused again without being parsed.
    """

    def __init__(self, config: Any, *args: Any, **named: Any) -> None:
        super().__init__(config, *args, **named)
        self._admission: Admission = config.app.state.admission
        self._heard = spans.heard()
        self._between = True  # the parser has seen whole requests only
        self._refused: Request | None = None  # the last one, where another like it may be refused alike
        self._active = 0.0  # when one was refused again, of the loop's time
        self._in_head = False  # the parser is within a head or, perhaps, within trailers
        self._seen = self._most = 0  # bytes of it, at least and at most
        self._since = 0.0  # since when more is awaited from the caller, of the loop's time; up to _active: nothing is
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_more()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shutdown(self) -> None:
        super().shutdown()
        if self.scheme == "https":
            self.loop.call_later(PART, self._part)

    def _part(self) -> None:
        """Leave a closed connection whose caller has not said that it is; an answer that is not sent yet goes first."""
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self in self.connections:
            self.loop.call_later(PART, self._part)

    def data_received(self, data: bytes) -> None:
        end = data.find(END) + len(END) if self._between and not self._heard and self._admission.limiter.full() else 0
        if end < len(END):
            self._feed(data)
            return
        head, heads = data[:end], self._admission.heads
        request, length = heads.get(head, (None, 0))
        idle = (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()
        if request is not None and len(data) == length and idle and not self.flow.write_paused:
            self._admission.refused_again(request)
            self._active = self.loop.time()
            self._await_next()
            self._refuse(request, OVERLOADED, keep_alive=True)
            return
        self._refused = None
        self._feed(data)
        request = self._refused
        if request is not None and self._between and len(head) <= LONGEST and self._admission.alike(request):
            length = len(head) + int(request.headers.get(b"content-length", "0"))
            if len(data) == length:
                if len(heads) >= MOST:
                    heads.clear()
                heads[head] = request, length

    def _feed(self, data: bytes) -> None:
        self._seen += len(data)
        self._most += len(data)
        super().data_received(data)
        if not self._in_head:
            self._seen = self._most = 0
        elif self._seen > MOST_HEAD:
            self._refuse_part(HEAD_TOO_LARGE)
        if self._since <= self._active and (not self._between or self._stray()):
            self._await_more()

    def _stray(self) -> bool:
        """Whether what came is of no request (empty lines), after which nothing else closes the connection."""
        return self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None)

    def _await_more(self) -> None:
        self._active, self._since = 0.0, self.loop.time()
        if self._timer is None and self._admission.read_timeout:  # one that runs looks how long is left, and begins the next
            self._timer = self.loop.call_later(self._admission.read_timeout, self._look)

    def _look(self) -> None:
        """End a request, or the connection, that has been awaited for too long."""
        self._timer = None
        if self._since <= self._active or self.transport.is_closing():
            return
        now, cycle = self.loop.time(), self.cycle
        answering = cycle is not None and not cycle.response_complete
        if self.flow.read_paused or (answering and not cycle.more_body):  # the caller waits for us
            self._since = now
        left = self._since + self._admission.read_timeout - now
        refusal = too_slow(self._admission.read_timeout)
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        elif self.flow.write_paused or (answering and TOO_SLOW in cycle.scope):  # nobody reads, or nobody answers
            self.transport.abort()
        elif answering:
            cycle.scope[TOO_SLOW] = refusal  # type: ignore[literal-required] # for the application, which waits for the body
            cycle.keep_alive = False
            cycle.message_event.set()
            self._await_more()
        elif self._in_head:
            self._refuse_part(refusal)
        else:
            self.transport.close()

    def _refuse_part(self, refusal: Refusal) -> None:
        """Answer a request whose head is not whole, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else it would be taken for the answer to the one before
            self._admission.refused(refusal)
            self._refuse(self._admission.request("(none)", "", ()), refusal, keep_alive=False)
        self.transport.close()

    def _await_next(self) -> None:
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        idle = self.loop.time() - self._active
        if idle < self.timeout_keep_alive:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive - idle, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        self._between, self._in_head = False, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._most > MOST_HEAD and _size(self.url, self.headers) > MOST_HEAD:
            self.scope[LONG] = True  # type: ignore[literal-required]
            self.url = self.url[:LONGEST]  # more, and it may not be read at all
            super().on_headers_complete()
            return
        # the cheapest way: no cycle of request and response either; the last one, which has ended, has what follows of a body forgotten
        if (
            self._admission.limiter.full()
            and self.cycle is not None
            and self.cycle.response_complete
            and not (self._heard or self.flow.write_paused or self.parser.should_upgrade())
            and self.parser.get_method() == b"POST"
            and PLAIN.fullmatch(self.url)
        ):
            request = self._admission.request("POST", self.root_path + self.url.decode("ascii"), self.headers)
            refusal = self._admission.refusal(request)
            if refusal is not None:
                keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
                self._refuse(request, refusal, keep_alive)
                self.on_response_complete()
                return
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._in_head, self._seen = True, 0  # trailers follow the last chunk, which has no body

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._between, self._in_head, self._seen, self._since = True, False, 0, 0.0
        super().on_message_complete()
        # the rest of a refused body came after its refusal, and reading it took away the time after which an idle connection is closed
        idle = self.cycle.response_complete and not self.pipeline and not self.transport.is_closing()
        if idle:
            self._await_next()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cycle.scope
        long = LONG in scope
        if self._since > self._active:
            self._since = self.loop.time()  # its body has as long again
        if not long and (self._heard or self.flow.write_paused):
            super()._start_asgi_task(cycle, app)
            return
        request = self._admission.request(scope["method"], scope["path"], scope["headers"])
        refusal = self._admission.refused(HEAD_TOO_LARGE) if long else self._admission.refusal(request)
        if refusal is None:
            self._unset_keepalive_if_required()  # set where a request was refused whose sender did not wait before it sent this
            scope[LET_IN] = request  # type: ignore[literal-required]
            super()._start_asgi_task(cycle, app)
            return
        cycle.response_started = cycle.response_complete = True
        self._refuse(request, refusal, cycle.keep_alive and not long, scope["method"] != "HEAD")
        if self.pipeline:
            self.loop.call_soon(self.on_response_complete)  # it starts the next: here, many would be a deep recursion
        else:
            self.on_response_complete()

    def _refuse(self, request: Request, refusal: Refusal, keep_alive: bool, whole: bool = True) -> None:
        """whole: with the body, which an answer to HEAD states the length of and lacks."""
        head, body = _rendered(refusal, request.path)
        more = [b"%b: %b\r\n" % each for each in self.server_state.default_headers]
        if not keep_alive:
            more.append(b"connection: close\r\n")
        self.transport.write(
            b"%b%bx-request-id: %b\r\n\r\n%b" % (head, b"".join(more), request.name.encode(), body if whole else b"")
        )
        self._admission.answered(request, refusal.status)
        if refusal is OVERLOADED:
            self._refused = request if keep_alive and whole else None
            if not self.pipeline:  # of which each waits for the one before, and the loop comes round for each
                self._admission.give_way_soon(self.loop)
        if not keep_alive:
            self.transport.close()


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a head."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


@lru_cache(64)
def _rendered(refusal: Refusal, path: str) -> tuple[bytes, bytes]:
    """Status line and headers, without those that are of one request, and the body."""
    answer = refusal.answer(path)
    return STATUS_LINE[refusal.status] + b"".join(b"%b: %b\r\n" % each for each in answer.raw_headers), bytes(answer.body)
