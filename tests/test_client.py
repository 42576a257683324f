"""The client of the service, over a real server: typed answers, typed errors, sync and async alike."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from shop import Shop
from test_service import opened, purchase, running

from zoo.client import SLACK, AccessError, AnswerError, AsyncClient, Client, DeadlineError, RequestError, UnavailableError
from zoo.errors import UsageError
from zoo.service import app
from zoo.service.access import PUSH, READ, Access, add_key
from zoo.service.load import Limiter


@pytest.fixture(scope="module")
def parts(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return opened(trained_shop.copy(tmp_path_factory.mktemp("client") / "shop"))


@pytest.fixture
def url(parts: Any) -> Iterator[str]:
    with running(app(*parts)) as client:
        yield str(client.base_url)


def test_answers_are_typed(url: str, parts: Any) -> None:
    with Client(url) as client:
        one, stranger = client.predict("churn", users=[1, 999_999], at="2024-05-01T00:00:00Z", deadline=60)
        assert (one.keys, one.known, one.version, stranger.known) == ({"user_id": 1}, True, "churn@1", False)
        (pair,) = client.predict("campaign", [{"user_id": 8, "campaign_id": 2}])
        assert pair.keys == {"user_id": 8, "campaign_id": 2}
        assert next((m.model, m.members) for m in client.models()) == ("churn", ["gbdt", "gru"])
        assert client.push([purchase(40, "c-1")]).added == 1
        assert client.push([purchase(40)], idempotency_key="k").added == 1

    async def same() -> Any:
        async with AsyncClient(url) as other:
            answers = await other.predict("churn", users=[1, 999_999], at="2024-05-01T00:00:00Z")
            return answers, await other.models(), await other.push([purchase(40, "c-1")])

    answers, models, pushed = asyncio.run(same())
    assert (replace(answers[0], id=one.id), models[0].model, pushed.repeated) == (one, "churn", 1)
    assert len({one.id, stranger.id, *(answer.id for answer in answers)}) == 4


def test_arrays_of_identifiers_are_taken(url: str) -> None:
    with Client(url) as client:
        whom = [each.keys for each in client.predict("churn", users=[1, 2])]
        frames = (np.array([1, 2]), [np.int64(1), np.int32(2)], pd.Series([1, 2]), pa.array([1, 2]), pl.Series([1, 2]), (1, 2))
        for users in frames:
            assert [each.keys for each in client.predict("churn", users=users)] == whom
        (pair,) = client.predict("campaign", [{"user_id": np.int64(8), "campaign_id": np.uint8(2)}])
        assert pair.keys == {"user_id": 8, "campaign_id": 2}
        (explained,) = client.explain("churn", users=np.array([1]))
        assert explained.keys == {"user_id": 1}
        assert client.push([purchase(41, "array", value=np.float32(1.5))]).added == 1
        for alone in (1, "u1", np.int64(1)):
            with pytest.raises(UsageError, match="expected a list"):
                client.predict("churn", users=alone)  # type: ignore[arg-type]
        for deadline in (float("inf"), float("nan")):
            with pytest.raises(UsageError, match="expected seconds from now"):
                client.predict("churn", users=[1], deadline=deadline)


@pytest.mark.parametrize(
    "body", [b"<html>Please log in</html>", b"", b"[]", b"{}", b'{"answers": [{}]}', b'{"answers": 1}', b"\xff", b"[" * 100_000]
)
def test_a_success_that_is_no_answer_is_an_error_of_its_own(body: bytes) -> None:
    def between(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/html"}, content=body)

    said = r"http://shop/v1/predict answered 200 with \d+ bytes of text/html, no answer of the service .*see that the address"
    with Client("http://shop", transport=httpx.MockTransport(between)) as client, pytest.raises(AnswerError, match=said) as told:
        client.predict("churn", users=[1])
    assert (told.value.status, told.value.kind) == (200, "answer")

    async def same() -> None:
        async with AsyncClient("http://shop", transport=httpx.MockTransport(between)) as other:
            await other.predict("churn", users=[1])

    with pytest.raises(AnswerError, match=said):
        asyncio.run(same())


def test_explanations_are_typed_and_the_predictors(url: str, parts: Any) -> None:
    asked: dict[str, Any] = {"users": [1, 999_999], "at": "2024-05-01T00:00:00Z", "top": 3, "events": 2}
    with Client(url) as client:
        found = client.explain("churn", **asked, deadline=60)
        (pair,) = client.explain("campaign", [{"user_id": 8, "campaign_id": 2}])
        with pytest.raises(RequestError, match="unknown output 'yes'"):
            client.explain("churn", users=[1], output="yes")
    expected = parts[0]["churn"].explain(**{**asked, "at": datetime.fromisoformat(asked["at"])})
    for one, user, whole in zip(found, asked["users"], expected, strict=True):
        own = {**vars(one)}
        assert (own.pop("keys"), own.pop("version")) == ({"user_id": user}, "churn@1")
        assert own == {**vars(whole), "id": one.id}
        assert one.id != whole.id
    assert found[0].events
    assert (found[0].features["gbdt"], [one.known for one in found]) == (expected[0].features["gbdt"], [True, False])
    assert (pair.keys, pair.units) == ({"user_id": 8, "campaign_id": 2}, "log-odds")

    async def same() -> Any:
        async with AsyncClient(url) as other:
            with pytest.raises(RequestError, match="at most 100 items"):
                await other.explain("churn", users=range(101))
            return await other.explain("churn", **asked, deadline=60)

    assert asyncio.run(same()) == found


def test_errors_are_typed(url: str, parts: Any, tmp_path: Path) -> None:
    with Client(url) as client:
        with pytest.raises(RequestError, match="unknown model 'chrun'") as found:
            client.predict("chrun", users=[1])
        assert (found.value.status, found.value.kind) == (404, "unknown_model")
        with pytest.raises(RequestError, match="ranks no items"):
            client.recommend("churn", [1])
    key = add_key(tmp_path / "keys.json", "reader", [READ])
    with running(app(*parts, access=Access(tmp_path / "keys.json", None), limiter=Limiter(0))) as server:
        with Client(str(server.base_url)) as client, pytest.raises(AccessError):
            client.models()
        with Client(str(server.base_url), key) as client:
            assert client.models()
            with pytest.raises(AccessError, match=f"needs the role '{PUSH}'"):
                client.push([purchase(1, "no")])
            with pytest.raises(UnavailableError, match="try again") as refused:
                client.predict("churn", users=[1])
            assert refused.value.retry_after == 1
    with Client(str(server.base_url)) as client, pytest.raises(UnavailableError, match="not reached"):
        client.models()


def test_a_deadline_is_an_error_of_its_own(parts: Any) -> None:
    import threading

    from test_service_runs import Held

    predictors, features = parts
    held = Held(predictors["churn"], threading.Semaphore(0), threading.Event())
    with running(app({"churn": held}, features)) as server, Client(str(server.base_url)) as client:  # type: ignore[dict-item]
        with pytest.raises(DeadlineError, match="no answer within the 40 ms"):
            client.predict("churn", users=[1], deadline=0.04)
        held.let.set()


def test_a_deadline_is_kept_where_the_service_says_nothing_and_counts_in_the_place_of_the_timeout() -> None:
    deadline, waited = 0.4, []

    def ask(url: str, timeout: float) -> None:
        with Client(url, timeout=timeout) as client:
            begun = time.monotonic()
            with pytest.raises(DeadlineError, match="did not answer"):
                client.predict("churn", users=[1], deadline=deadline)
            waited.append(time.monotonic() - begun)

    async def same(url: str, timeout: float) -> None:
        async with AsyncClient(url, timeout=timeout) as client:
            begun = time.monotonic()
            with pytest.raises(DeadlineError, match="did not answer"):
                await client.explain("churn", users=[1], deadline=deadline)
            waited.append(time.monotonic() - begun)

    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a stopped server: connections wait in its queue
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for timeout in (30.0, 0.05):
            ask(url, timeout)
            asyncio.run(same(url, timeout))
        with Client(url, timeout=0.05) as client, pytest.raises(DeadlineError):
            client.models()  # without a deadline the timeout counts
    assert all(deadline + SLACK - 0.05 <= seconds < deadline + SLACK + 5 for seconds in waited), waited
