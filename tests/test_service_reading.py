"""How requests are read: heads that do not end, and callers who do not send what they began."""

from __future__ import annotations

import json
import logging
import threading
import time
from select import select
from typing import Any

import pytest
from shop import Shop
from test_service import opened, running
from test_service_overload import LIVE, Caller, post
from test_service_runs import BODY, Held, counts

from zoo.service import app
from zoo.service.load import Limiter
from zoo.service.protocol import MOST_HEAD

LARGE, SLOW = (f'zoo_refused_total{{reason="{why}"}}' for why in ("head_too_large", "too_slow"))
SOON = 1.0
"""Seconds that a caller may take here."""


@pytest.fixture(scope="module")
def parts(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return opened(trained_shop.copy(tmp_path_factory.mktemp("reading") / "shop"))


def refused(caller: Caller) -> tuple[int, str]:
    """Status and type of an answer after which the connection is closed."""
    status, headers, body = caller.answer()
    assert headers["connection"] == "close"
    assert caller.ended()
    return status, json.loads(body)["error"]["type"]


def freed(limiter: Limiter) -> bool:
    for _ in range(500):
        if not limiter.running:
            return True
        time.sleep(0.01)
    return False


# Heads


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("begin", [b"GET /", b"GET /health/live HTTP/1.1\r\nX-Long: ", b"POST /v1/predict HTTP/1.1\r\nX-Long: "])
def test_a_head_that_does_not_end_is_refused(parts: Any, begin: bytes, before: int) -> None:
    with running(app(*parts)) as client, Caller(client) as caller:
        counted = counts(client).get(LARGE, 0)
        caller.send(LIVE * before)
        assert caller.statuses(before) == [200] * before
        caller.send(begin)
        for _ in range(0, MOST_HEAD - len(begin), 4_096):
            caller.send(b"x" * 4_096)
        assert refused(caller) == (431, "head_too_large")
        assert counts(client)[LARGE] - counted == 1


def test_a_head_that_is_whole_and_too_large_is_refused(parts: Any) -> None:
    long = b"x" * MOST_HEAD
    for head in (LIVE.replace(b"live", long), LIVE.replace(b"localhost", b"localhost\r\nX-Long: " + long)):
        with running(app(*parts)) as client:
            for before in (0, 2):
                with Caller(client) as caller:
                    caller.send(LIVE * before, head)
                    assert caller.statuses(before) == [200] * before
                    assert refused(caller) == (431, "head_too_large")


def test_a_head_that_is_large_is_read(parts: Any) -> None:
    head = LIVE.replace(b"localhost", b"localhost\r\nX-Long: " + b"x" * (MOST_HEAD - 1_000))
    with running(app(*parts)) as client, Caller(client) as caller:
        caller.send(head * 20)
        assert caller.statuses(20) == [200] * 20
        large = post(body=json.dumps(BODY).encode() + b" " * 500_000)
        caller.send(large, head, large, head[:50_000])
        assert caller.statuses(3) == [200] * 3
        caller.send(head[50_000:])
        assert caller.answer()[0] == 200


def test_trailers_that_do_not_end_are_not_kept(parts: Any) -> None:
    with running(app(*parts, limiter=Limiter(0))) as client, Caller(client) as caller:
        caller.send(post("Transfer-Encoding: chunked", body=b"1\r\n{\r\n1\r\n}\r\n"))
        assert caller.answer()[0] == 503
        caller.send(b"0\r\nX-Long: ")
        with pytest.raises(ConnectionError):
            caller.send(b"x" * 65_536_000)


def test_chunks_are_no_head_however_they_come(parts: Any) -> None:
    with running(app(*parts)) as client, Caller(client) as caller:
        body = json.dumps(BODY).encode()
        chunks = b"%x\r\n%s\r\n" % (len(body), body) + b"30d40\r\n" + b" " * 200_000 + b"\r\n" + b"1\r\n \r\n" * 20_000
        caller.send(post("Transfer-Encoding: chunked", body=chunks), b"0\r\nX-Trailer: 1\r\n\r\n", LIVE)
        assert caller.statuses(2) == [200, 200]


# Time


def test_a_connection_on_which_nothing_comes_is_closed(parts: Any) -> None:
    with running(app(*parts, read_timeout=SOON)) as client, Caller(client) as silent, Caller(client) as empty:
        empty.send(LIVE)
        assert empty.answer()[0] == 200
        empty.send(b"\r\n")  # of no request, yet not idle to uvicorn any more
        began = time.monotonic()
        assert silent.ended()
        assert empty.ended()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("before", [0, 1])
def test_a_head_that_comes_too_slowly_is_refused(parts: Any, before: int) -> None:
    with running(app(*parts, read_timeout=SOON)) as client, Caller(client) as caller:
        caller.send(LIVE * before)
        assert caller.statuses(before) == [200] * before
        for byte in LIVE:  # of which none is the beginning of a new wait
            caller.send(bytes([byte]))
            if select([caller.socket], [], [], SOON / 10)[0]:
                break
        else:
            raise AssertionError("the head was taken")
        assert refused(caller) == (408, "too_slow")


def test_a_body_that_does_not_come_gives_its_place_back(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    limiter, request = Limiter(1), post()
    api = app(*parts, limiter=limiter, read_timeout=SOON)
    with running(api) as client, caplog.at_level(logging.INFO, "zoo.access"):
        counted = counts(client).get(SLOW, 0)
        for headers in ((), ("X-Deadline-Ms: 60000",)):
            with Caller(client) as slow, Caller(client) as other:
                slow.send(post(*headers)[:-5])
                while not limiter.running:
                    time.sleep(0.01)
                other.send(request)
                assert other.answer()[0] == 503
                assert refused(slow) == (408, "too_slow")
                assert freed(limiter)
        assert client.post("/v1/predict", json=BODY).status_code == 200
        assert counts(client)[SLOW] - counted == 2
    lines = [record.facts["status"] for record in caplog.records if record.name == "zoo.access"]  # type: ignore[attr-defined]
    assert lines.count(408) == 2


def test_a_caller_who_leaves_gives_its_place_back(parts: Any) -> None:
    limiter = Limiter(1)
    with running(app(*parts, limiter=limiter)) as client:
        with Caller(client) as caller:
            caller.send(post()[:-5])
            while not limiter.running:
                time.sleep(0.01)
        assert freed(limiter)


def test_the_rest_of_a_refused_body_is_not_waited_for_without_end(parts: Any) -> None:
    with running(app(*parts, limiter=Limiter(0), read_timeout=SOON), timeout_keep_alive=60) as client, Caller(client) as caller:
        for _ in range(2):  # with a cycle of request and response, and without one
            caller.send(post())
            assert caller.answer()[0] == 503
        caller.send(post()[:-5])
        assert caller.answer()[0] == 503
        assert caller.ended()


def test_who_waits_for_an_answer_or_between_requests_is_not_slow(parts: Any) -> None:
    predictors, features = parts
    held = Held(predictors["churn"], threading.Semaphore(0), threading.Event())
    with running(app({"churn": held}, features, read_timeout=SOON), timeout_keep_alive=60) as client, Caller(client) as caller:  # type: ignore[dict-item]
        caller.send(LIVE)
        assert caller.answer()[0] == 200
        time.sleep(2 * SOON)
        caller.send(post()[:-5])
        caller.send(post()[-5:], LIVE[:5])  # half a head behind a request that is answered
        time.sleep(3 * SOON)
        held.let.set()
        assert caller.answer()[0] == 200
        assert refused(caller) == (408, "too_slow")


def test_a_connection_that_is_refused_again_is_not_slow(parts: Any) -> None:
    with running(app(*parts, limiter=Limiter(0), read_timeout=SOON)) as client, Caller(client) as first:
        first.send(post())
        assert first.answer()[0] == 503
        with Caller(client) as caller:  # whose first request is known
            for _ in range(10):
                caller.send(post())
                assert caller.answer()[0] == 503
                time.sleep(SOON / 5)
            caller.send(LIVE[:5])
            assert refused(caller) == (408, "too_slow")


def test_without_a_limit_of_time_nobody_is_slow(parts: Any) -> None:
    with running(app(*parts, read_timeout=0)) as client, Caller(client) as caller:
        time.sleep(0.3)
        caller.send(LIVE[:5])
        time.sleep(0.3)
        caller.send(LIVE[5:])
        assert caller.answer()[0] == 200
