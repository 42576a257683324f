"""What is refused is answered by the protocol, before there is a task or a scope for it: on real sockets, as callers write to them."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from shop import Shop
from test_service import opened, running
from test_service_runs import BODY, Held, counts

from zoo.service import app
from zoo.service.access import READ, Access, add_key
from zoo.service.guard import Guard
from zoo.service.load import Limiter
from zoo.service.protocol import Protocol

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSED = 'zoo_refused_total{reason="overloaded"}'


@pytest.fixture(scope="module")
def parts(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return opened(trained_shop.copy(tmp_path_factory.mktemp("overload") / "shop"))


def post(*headers: str, body: bytes = json.dumps(BODY).encode(), version: str = "1.1", length: int | None = None) -> bytes:
    given = ["Host: localhost", "Content-Type: application/json", *headers]
    if not any(each.startswith("Transfer") for each in headers):
        given.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([f"POST /v1/predict HTTP/{version}", *given, "", ""]).encode() + body


class Caller:
    """One connection, of which every byte is looked at."""

    def __init__(self, client: httpx.Client) -> None:
        self.socket = socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)
        self.file = self.socket.makefile("rb")

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def answer(self, whole: bool = True) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name] = value
        return status, headers, self.file.read(int(headers["content-length"])) if whole else b""

    def statuses(self, number: int) -> list[int]:
        return [self.answer()[0] for _ in range(number)]

    def ended(self) -> bool:
        return self.file.read() == b""

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()


@contextmanager
def busy(parts: Any, **options: Any) -> Iterator[tuple[httpx.Client, Held]]:
    """A server that works on the one request that it lets in, until it is let go."""
    predictors, features = parts
    held = Held(predictors["churn"], threading.Semaphore(0), threading.Event())
    api = app({"churn": held}, features, limiter=Limiter(1))  # type: ignore[dict-item]
    with running(api, **options) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{client.base_url}/v1/predict", json=BODY, timeout=60)
        assert held.begun.acquire(timeout=30)
        try:
            yield client, held
        finally:
            held.let.set()
        assert first.result().status_code == 200


def test_the_protocol_refuses_as_the_application_does_behind_another_server(parts: Any) -> None:
    answers = []
    for http in ("auto", Protocol):
        with running(app(*parts, limiter=Limiter(0)), http=http) as client, Caller(client) as caller:
            for path in ("/v1/predict", "/v1/recommend", "/v2/models/churn/infer", "/v1/events"):
                caller.send(post("X-Request-Id: r-1").replace(b"/v1/predict", path.encode()))
                status, headers, body = caller.answer()
                del headers["date"]
                assert (status, headers["retry-after"], headers["x-request-id"]) == (503, "1", "r-1")
                answers.append((headers, body))
            caller.send(post().replace(b"/v1/predict", b"/v1/%70redict?a=%20"), post().replace(b"/v1/predict", b"/v1/none"))
            assert caller.statuses(2) == [503, 404]
            caller.send(post(length=2**40))
            assert caller.answer()[0] == 413
    assert answers[:4] == answers[4:]
    assert json.loads(answers[0][1])["error"]["type"] == "overloaded"
    assert isinstance(json.loads(answers[2][1])["error"], str)


@pytest.mark.parametrize("http", ["auto", Protocol])
def test_spaces_around_the_value_of_a_header_are_no_part_of_it(parts: Any, tmp_path: Path, http: Any) -> None:
    key = add_key(tmp_path / "keys.json", "reader", [READ])
    with (
        running(app(*parts, access=Access(tmp_path / "keys.json", None)), http=http) as client,
        Caller(client) as caller,
    ):
        caller.send(post("X-Deadline-Ms: \t60000 \t", "X-Request-Id:  r-1 ", f"Authorization: Bearer {key}  "))
        status, headers, _ = caller.answer()
        assert (status, headers["x-request-id"]) == (200, "r-1")


def test_a_refusal_needs_nothing_of_the_application(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(app(*parts, limiter=Limiter(0))) as client, Caller(client) as caller:
        caller.send(LIVE)
        assert caller.answer()[0] == 200
        monkeypatch.delattr(Guard, "__call__")
        caller.send(post())
        assert caller.answer()[0] == 503


def test_what_was_refused_is_refused_again_without_being_parsed(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy(parts) as (client, held), Caller(client) as first, Caller(client) as second:
        before = counts(client)
        for caller in (first, second):
            caller.send(post())
            assert caller.answer()[0] == 503
        names = set()
        with monkeypatch.context() as patch:
            patch.setattr(Protocol, "on_message_begin", None)  # the parser would fail
            for caller in (first, second, first, second):
                caller.send(post())
                status, headers, body = caller.answer()
                assert (status, headers["retry-after"], json.loads(body)["error"]["type"]) == (503, "1", "overloaded")
                names.add(headers["x-request-id"])
        assert len(names) == 4
        after = counts(client)
        assert after[REFUSED] - before.get(REFUSED, 0) == 6
        # another body, a body that comes later, more than one request, a caller's own id: looked at one by one
        first.send(post(body=json.dumps({**BODY, "users": [1, 2]}).encode()))
        assert first.answer()[0] == 503
        head, _, body = post().partition(b"{")
        first.send(head)
        assert first.answer()[0] == 503
        first.send(b"{", body, post(), LIVE)
        assert first.statuses(2) == [503, 200]
        for name in ("mine", "yours"):
            second.send(post(f"X-Request-Id: {name}"))
            assert second.answer()[1]["x-request-id"] == name
        held.let.set()
        while True:
            second.send(post())
            if (status := second.answer()[0]) != 503:  # until the first has ended
                break
        assert status == 200


def test_a_connection_that_is_refused_again_is_closed_when_it_is_idle(parts: Any) -> None:
    with running(app(*parts, limiter=Limiter(0)), timeout_keep_alive=1) as client, Caller(client) as caller:
        for _ in range(8):
            caller.send(post())
            assert caller.answer()[0] == 503
            time.sleep(0.2)  # longer in all than an idle connection is kept
        began = time.monotonic()
        assert caller.ended()
        assert time.monotonic() - began < 10


def test_a_refused_body_is_not_waited_for_and_read_to_its_end(parts: Any) -> None:
    body = json.dumps({**BODY, "users": [1] * 20_000}).encode()
    with running(app(*parts, limiter=Limiter(0))) as client, Caller(client) as caller:
        for _ in range(2):
            caller.send(post(length=len(body), body=b""))
            assert caller.answer()[0] == 503
            for begin in range(0, len(body), 7_000):
                caller.send(body[begin : begin + 7_000])
            caller.send(LIVE)
            assert caller.answer()[0] == 200
        caller.send(post("Transfer-Encoding: chunked", body=b"5\r\n{    \r\n"))
        assert caller.answer()[0] == 503
        caller.send(b"1\r\n}\r\n0\r\n\r\n", LIVE)
        assert caller.answer()[0] == 200


def test_a_refused_head_has_no_body_behind_its_headers(parts: Any, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "reader", ["read"])
    access = Access(tmp_path / "keys.json", None)
    with running(app(*parts, access=access)) as client, Caller(client) as caller:
        caller.send(b"HEAD /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers, _ = caller.answer(whole=False)
        assert (status, int(headers["content-length"]) > 0) == (401, True)
        caller.send(LIVE)
        assert caller.answer()[0] == 200


def test_an_idle_connection_whose_refused_body_came_later_is_closed(parts: Any) -> None:
    with running(app(*parts, limiter=Limiter(0)), timeout_keep_alive=1) as client, Caller(client) as caller:
        body = json.dumps(BODY).encode()
        for _ in range(2):  # with a cycle of request and response, and without one
            caller.send(post(length=len(body), body=b""))
            assert caller.answer()[0] == 503
            caller.send(body)
        assert caller.ended()


def test_a_head_in_pieces_is_refused_when_it_is_whole(parts: Any) -> None:
    request = post()
    with running(app(*parts, limiter=Limiter(0))) as client, Caller(client) as caller:
        caller.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(request), 10):
            caller.send(request[begin : begin + 10])
        assert caller.answer()[0] == 503


def test_requests_without_waiting_are_answered_in_their_order(parts: Any) -> None:
    with busy(parts) as (client, _), Caller(client) as caller:
        caller.send(*(post(f"X-Request-Id: r-{number}") for number in range(3)), LIVE)
        assert [caller.answer()[1]["x-request-id"] for _ in range(3)] == ["r-0", "r-1", "r-2"]
        assert caller.answer()[0] == 200
        # those behind one that runs wait for it, and more of them than a stack is deep
        caller.send(LIVE, post() * 1_000, LIVE)
        assert caller.statuses(1_002) == [200, *[503] * 1_000, 200]


def test_a_caller_who_does_not_read_is_waited_for(parts: Any) -> None:
    number = 30_000
    with busy(parts) as (client, _), Caller(client) as caller, ThreadPoolExecutor(1) as pool:
        caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sent = pool.submit(caller.send, post(f"X-Padding: {'x' * 2_000}") * number)
        with pytest.raises(TimeoutError):
            sent.result(timeout=2)  # answers that nobody reads stop the reading of requests
        assert caller.statuses(number) == [503] * number
        sent.result(timeout=30)


def test_a_connection_is_kept_or_closed_as_its_caller_asks(parts: Any) -> None:
    with busy(parts) as (client, held):
        with Caller(client) as kept:
            for request, status in ((post(), 503), (LIVE, 200), (post(), 503)):
                kept.send(request)
                assert kept.answer()[0] == status
            held.let.set()
            while True:
                kept.send(post())
                if (status := kept.answer()[0]) != 503:  # until the first has ended
                    break
            assert status == 200
        held.let.clear()
    for request, before in [(r, b) for r in (post("Connection: close"), post(version="1.0")) for b in (0, 1)]:
        with busy(parts) as (client, _), Caller(client) as caller:
            caller.send(LIVE * before)
            assert caller.statuses(before) == [200] * before
            caller.send(request)
            status, headers, _ = caller.answer()
            assert (status, headers["connection"]) == (503, "close")
            assert caller.ended()


def test_a_long_answer_behind_a_refusal_is_not_taken_for_an_idle_connection(parts: Any) -> None:
    predictors, features = parts
    held = Held(predictors["churn"], threading.Semaphore(0), threading.Event())
    api = app({"churn": held}, features)  # type: ignore[dict-item]
    with running(api, timeout_keep_alive=0.2) as client, Caller(client) as caller:
        caller.send(post("X-Deadline-Ms: soon"), post())
        assert caller.answer()[0] == 400
        assert not held.let.wait(1)
        held.let.set()
        assert caller.answer()[0] == 200


def test_refusals_are_counted_and_logged(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    with busy(parts) as (client, _), Caller(client) as caller, caplog.at_level(logging.INFO, "zoo.access"):
        before = counts(client)
        caller.send(post("X-Request-Id: mine"), post())
        assert caller.statuses(2) == [503, 503]
        after = counts(client)
        changes = {name: value - before.get(name, 0) for name, value in after.items()}
        assert changes[REFUSED] == changes['zoo_requests_total{route="/v1/predict",status="503"}'] == 2
        assert changes['zoo_request_seconds_count{route="/v1/predict"}'] == 2
        assert after["zoo_requests_running"] == 1
    lines = [record.facts for record in caplog.records if record.name == "zoo.access"]  # type: ignore[attr-defined]
    refused = [line for line in lines if line["status"] == 503]
    assert [line["route"] for line in refused] == ["/v1/predict"] * 2
    assert refused[0].keys() == {"method", "route", "status", "ms", "request_id"}
    assert refused[0]["request_id"] == "mine"


def test_those_who_may_not_ask_are_told_so_whatever_the_load(parts: Any, tmp_path: Any) -> None:
    key = add_key(tmp_path / "keys.json", "shop", ["push"])
    access = Access(tmp_path / "keys.json", None)
    with running(app(*parts, access=access, limiter=Limiter(0))) as client, Caller(client) as caller:
        for _ in range(2):
            caller.send(post(), post(f"Authorization: Bearer {key}"))
            status, headers, _ = caller.answer()
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert caller.answer()[0] == 403
        caller.send(post(f"Authorization: Bearer {key}").replace(b"/v1/predict", b"/v1/events"), LIVE)
        assert caller.statuses(2) == [503, 200]
