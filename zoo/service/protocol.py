"""HTTP as uvicorn speaks it, except that a request which is not let in is answered where its headers were read.

Under overload most requests are refused, in the interpreter that computes the answers of the rest: without a task, the application's
layers and a response made of parts, a refusal takes a fraction of that time.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from zoo import spans
from zoo.service.admission import OVERLOADED, Admission, Request
from zoo.service.guard import LET_IN
from zoo.service.problems import Refusal

PLAIN = re.compile(rb"/[A-Za-z0-9_.@-][A-Za-z0-9_.@/-]*")
"""A target that is a path as it stands."""
END = b"\r\n\r\n"
LONGEST = 2_048
"""Bytes of a head that is remembered."""
MOST = 1_024
"""Heads that are; all are forgotten when there are more."""


class Protocol(HttpToolsProtocol):
    """For ``uvicorn.Config(http=...)`` and an application of ``zoo.service.app``, whose ``Admission`` decides here.

    What is sent of a refused body is read and forgotten. A request is left to the application, whose ``Guard`` asks the same
    ``Admission``, where spans are kept, or where the caller does not read its answers, which then have to wait.

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

    def data_received(self, data: bytes) -> None:
        end = data.find(END) + len(END) if self._between and not self._heard and self._admission.limiter.full() else 0
        if end < len(END):
            super().data_received(data)
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
        super().data_received(data)
        request = self._refused
        if request is not None and self._between and len(head) <= LONGEST and self._admission.alike(request):
            length = len(head) + int(request.headers.get(b"content-length", "0"))
            if len(data) == length:
                if len(heads) >= MOST:
                    heads.clear()
                heads[head] = request, length

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
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
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

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()
        # the rest of a refused body came after its refusal, and reading it took away the time after which an idle connection is closed
        idle = self.cycle.response_complete and not self.pipeline and not self.transport.is_closing()
        if idle:
            self._await_next()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._heard or self.flow.write_paused:
            super()._start_asgi_task(cycle, app)
            return
        scope = cycle.scope
        request = self._admission.request(scope["method"], scope["path"], scope["headers"])
        refusal = self._admission.refusal(request)
        if refusal is None:
            self._unset_keepalive_if_required()  # set where a request was refused whose sender did not wait before it sent this
            scope[LET_IN] = request  # type: ignore[literal-required]
            super()._start_asgi_task(cycle, app)
            return
        cycle.response_started = cycle.response_complete = True
        self._refuse(request, refusal, cycle.keep_alive, scope["method"] != "HEAD")
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


@lru_cache(64)
def _rendered(refusal: Refusal, path: str) -> tuple[bytes, bytes]:
    """Status line and headers, without those that are of one request, and the body."""
    answer = refusal.answer(path)
    return STATUS_LINE[refusal.status] + b"".join(b"%b: %b\r\n" % each for each in answer.raw_headers), bytes(answer.body)
