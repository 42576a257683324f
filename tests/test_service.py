"""The service as other programs meet it: a real server on a loopback port, asked over HTTP."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastapi.routing
import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shop import DAY, START, USERS, Shop

from zoo.errors import LateError, RegistryError, UsageError, ZooError
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.service import app, readiness, serve
from zoo.service.explaining import AT_ONCE, PLACES
from zoo.service.load import Limiter
from zoo.service.messages import MAX_EXPLAINED, MAX_ROWS, EventsRequest, ExplainRequest, PredictRequest
from zoo.service.problems import MAX_BODY
from zoo.service.protocol import Protocol
from zoo.service.readiness import KEPT

readiness.WITHIN = 60.0  # what these tests ask of readiness is who is ready, not how soon a loaded machine can say it
LATER = "2024-06-01T00:00:00Z"
"""After the shop's last day."""


@contextmanager
def running(api: Any, **options: Any) -> Iterator[httpx.Client]:
    """The application behind a real server, and a client of it. options: for uvicorn's Config."""
    listener = socket.create_server(("127.0.0.1", 0))  # it listens from here on: a client waits in its queue
    server = uvicorn.Server(uvicorn.Config(api, **{"http": Protocol, "log_config": None, "lifespan": "off", **options}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@dataclass(frozen=True, repr=False)
class Served:
    """A server's client, and what it answers with."""

    client: httpx.Client
    predictors: dict[str, Predictor]
    features: Features

    def predict(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/predict", json={"model": "churn", **body})

    def one(self, user: int, **body: Any) -> dict[str, Any]:
        return self.predict(users=[user], **body).raise_for_status().json()["answers"][0]

    def push(self, *events: dict[str, Any], **body: Any) -> httpx.Response:
        return self.client.post("/v1/events", json={"events": events, **body})


def opened(shop: Shop) -> tuple[dict[str, Predictor], Features]:
    features = Features.open(shop.root)
    return {name: Predictor.load(name, shop.root, features=features) for name in ("churn", "campaign")}, features


@pytest.fixture(scope="module")
def served(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service over a copy of the shop. Each test pushes events of users of its own."""
    predictors, features = opened(trained_shop.copy(tmp_path_factory.mktemp("served") / "shop"))
    with running(app(predictors, features)) as client:
        yield Served(client, predictors, features)


def purchase(user: int, event_id: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if event_id is None else {"event_id": event_id}
    return {"user_id": user, "item_id": 3, "event_type": "purchase", "timestamp": LATER, "value": 9.5, **named, **more}


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message of an error body, which has nothing else."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["type", "message"]
    return response.status_code, body["error"]["type"], body["error"]["message"]


# Health and models


def test_live_and_ready_are_told_apart(served: Served) -> None:
    assert served.client.get("/health/live").json() == {"status": "live"}
    ready = {"churn@1": "ready", "campaign@1": "ready"}
    assert served.client.get("/health/ready").json() == {"status": "ready", "versions": ready}


def test_models_say_what_they_need_and_what_they_were_made_from(served: Served) -> None:
    found = {card["model"]: card for card in served.client.get("/v1/models").json()["models"]}
    assert list(found) == ["churn", "campaign"]
    churn = found["churn"]
    version = served.predictors["churn"].version
    assert (churn["version"], churn["aliases"]) == ("churn@1", ["champion"])
    assert (churn["entities"], churn["members"], churn["outputs"]) == (["user_id"], ["gbdt", "gru"], [])
    assert found["campaign"]["entities"] == ["user_id", "campaign_id"]
    assert churn["created"].startswith(version.created.strftime("%Y-%m-%dT%H:%M:%S"))
    assert churn["metrics"]["auc"] == version.metrics["stack"]["auc"]
    assert churn["lineage"]["service_hash"] == version.lineage["service_hash"]
    assert churn["lineage"]["log"] == version.lineage["log"]
    assert churn["lineage"]["plugins"]["gru"]["distribution"] == "feature-zoo-recurrent"


# Predictions


def test_answers_are_the_predictors_in_the_order_of_the_rows(served: Served) -> None:
    asked = [5, 3, 999_999, 5]
    at = "2024-04-01T00:00:00+00:00"
    response = served.predict(rows=[{"user_id": user} for user in asked], at=at)
    assert response.status_code == 200
    answers = response.json()["answers"]
    expected = served.predictors["churn"].predict(users=asked, at=START + 91 * DAY).to_pylist()
    assert [a["keys"]["user_id"] for a in answers] == asked
    for answer, one in zip(answers, expected):
        assert list(answer) == [
            "keys",
            "score",
            "members",
            "newest_event_age",
            "known",
            "version",
            "missing",
            "calibrated",
            "features",
            "id",
        ]
        assert (answer["score"], answer["members"]) == (one["score"], {"gbdt": one["gbdt"], "gru": one["gru"]})
        assert (answer["newest_event_age"], answer["known"]) == (one["newest_event_age"], one["known"])
        assert answer["version"] == "churn@1"
    assert [a["known"] for a in answers] == [True, True, False, True]
    assert answers[2]["newest_event_age"] is None


def test_predictions_take_the_short_way(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(**_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(fastapi.routing, "solve_dependencies", never)
    assert served.predict(users=[3]).status_code == 200
    assert served.predict(users="x").status_code == 500


def test_users_are_short_for_rows(served: Served) -> None:
    one, other = served.predict(users=[1, 2]).json(), served.predict(rows=[{"user_id": 1}, {"user_id": 2}]).json()
    ids = [each.pop("id") for answers in (one, other) for each in answers["answers"]]
    assert one == other
    assert len(set(ids)) == 4


def test_no_rows_are_no_answers(served: Served) -> None:
    assert served.predict(users=[]).json() == served.predict(rows=[]).json() == {"answers": []}


def test_a_pair_is_named_by_both_keys(served: Served) -> None:
    row = {"user_id": 8, "campaign_id": 2}
    (answer,) = served.client.post("/v1/predict", json={"model": "campaign", "rows": [row]}).json()["answers"]
    assert answer["keys"] == row
    assert answer["version"] == "campaign@1"


def test_a_score_for_each_class_is_an_object(served: Served) -> None:
    from test_predictor import ensemble_of  # the predictor's own tests make such a one

    from zoo.contract import Target

    three = ensemble_of(served.predictors["churn"], (0.25, 0.25, 0.5), Target("multiclass", classes=("a", "b", "c")))
    with running(app({"three": three}, served.features)) as client:
        (answer,) = client.post("/v1/predict", json={"model": "three", "users": [1]}).json()["answers"]
    assert answer["score"] == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert answer["members"] == {"gbdt": answer["score"], "gru": answer["score"]}


# Explanations


def test_explanations_are_the_predictors_in_the_order_of_the_rows(served: Served) -> None:
    asked, churn = [5, 3, 999_999], served.predictors["churn"]
    body = {"model": "churn", "users": asked, "at": "2024-04-01T00:00:00Z", "top": 3, "events": 2}
    answers = served.client.post("/v1/explain", json=body).raise_for_status().json()["answers"]
    expected = churn.explain(users=asked, at=START + 91 * DAY, top=3, events=2)
    assert answers == [
        {"keys": {"user_id": user}, "version": "churn@1", **json.loads(json.dumps(each.as_dict())), "id": answer["id"]}
        for user, each, answer in zip(asked, expected, answers, strict=True)
    ]
    assert len({*(answer["id"] for answer in answers), *(each.id for each in expected)}) == 6
    assert [answer["score"] for answer in answers] == pytest.approx(
        [answer["score"] for answer in served.predict(users=asked, at=body["at"]).json()["answers"]]
    )
    assert [(answer["units"], answer["source"], answer["known"]) for answer in answers] == [
        ("log-odds", "fresh", user != 999_999) for user in asked
    ]
    assert answers[0]["events"]
    assert all(len(columns) <= 3 for answer in answers for columns in answer["features"].values())
    assert served.client.post("/v1/explain", json={"model": "churn", "users": []}).json() == {"answers": []}


def test_a_pair_is_explained_by_both_keys(served: Served) -> None:
    rows = [{"user_id": 8, "campaign_id": 2}, {"user_id": 9, "campaign_id": 2}]
    answers = served.client.post("/v1/explain", json={"model": "campaign", "rows": rows}).raise_for_status().json()["answers"]
    assert [answer["keys"] for answer in answers] == rows
    for answer in answers:
        assert answer["base"] + sum(answer["members"].values()) == pytest.approx(answer["raw"], abs=1e-6)


def test_a_class_may_be_asked_for(served: Served) -> None:
    from test_predictor import ensemble_of

    from zoo.contract import Target

    three = ensemble_of(served.predictors["churn"], (0.25, 0.25, 0.5), Target("multiclass", classes=("a", "b", "c")))
    with running(app({"three": three}, served.features)) as client:
        ask = {"model": "three", "users": [1], "events": 0}
        found = [client.post("/v1/explain", json=ask | more).json()["answers"][0] for more in ({}, {"output": "a"})]
    assert [(answer["output"], answer["score"]) for answer in found] == [("c", 0.5), ("a", 0.25)]


def test_an_explanation_keeps_neither_its_deadline_waiting_nor_predictions_out(
    trained_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    let, given = threading.Event(), []

    def explain(*_: Any, deadline: float | None, **__: Any) -> list[Any]:
        given.append(deadline)
        let.wait(60)
        return []

    limiter = Limiter()
    with running(app(*opened(trained_shop), limiter=limiter)) as client:
        monkeypatch.setattr(Predictor, "explain", explain)
        body = {"model": "churn", "users": []}
        try:
            for _ in range(2 * AT_ONCE):  # more than are worked on at once
                late = client.post("/v1/explain", json=body, headers={"X-Deadline-Ms": "200"})
                assert problem(late)[:2] == (504, "deadline")
            page = client.get("/")  # in the pool of threads that pushes and lists have, too
            assert (page.status_code, limiter.running) == (200, 2 * AT_ONCE)
        finally:
            let.set()
        assert len(given) == AT_ONCE
        assert all(deadline is not None and 0 < deadline <= 0.2 for deadline in given)
        assert client.post("/v1/explain", json=body).json() == {"answers": []}
    assert (limiter.running, limiter.mean, limiter.limit) == (0, 0.0, 128.0)  # what took long is no sign of load


def test_explanations_and_pages_that_wait_are_few_and_keep_nothing_else_out(
    trained_shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let = threading.Event()

    def explain(*_: Any, **__: Any) -> list[Any]:
        let.wait(60)
        raise LateError("too late to say")

    limiter = Limiter()
    served = app(*opened(trained_shop.copy(tmp_path / "shop")), limiter=limiter)
    with running(served) as client, ThreadPoolExecutor(2 * PLACES) as pool:
        monkeypatch.setattr(Predictor, "explain", explain)
        body = {"model": "churn", "users": []}
        try:
            asked = [pool.submit(client.post, "/v1/explain", json=body) for _ in range(PLACES // 2)]
            while limiter.running < PLACES // 2:
                time.sleep(0.01)
            pages = [pool.submit(client.get, "/?user=1&model=churn") for _ in range(PLACES)]
            refused = [each.result() for each in itertools.islice(as_completed(pages), PLACES // 2)]
            refused.append(client.post("/v1/explain", json=body))
            for each in refused:
                assert problem(each)[:2] == (503, "overloaded")
                assert each.headers["retry-after"] == "1"
            assert client.post("/v1/events", json={"events": [purchase(1, "beside")]}).json()["added"] == 1
            assert client.post("/v1/predict", json={"model": "churn", "users": [1]}).status_code == 200
            assert 'zoo_refused_total{reason="overloaded"} 9.0' in client.get("/metrics").text
        finally:
            let.set()
        assert {each.result().status_code for each in asked} == {504}
        assert {each.result().status_code for each in pages} == {200, 503}  # with the score, without what moved it
        assert client.post("/v1/explain", json=body).status_code == 504


# Pushes


def test_the_next_prediction_sees_a_push(served: Served) -> None:
    before = served.one(20)
    report = served.push(purchase(20, "seen-1"), purchase(20, "seen-2", item_id=4)).raise_for_status().json()
    assert (report["rows"], report["added"], report["repeated"], report["quarantined"], report["ignored"]) == (2, 2, 0, {}, [])
    after = served.one(20)
    assert after["newest_event_age"] < before["newest_event_age"]
    assert after["score"] != before["score"]
    assert served.one(20, at="2024-06-08T00:00:00Z")["newest_event_age"] == 7 * 86_400
    at = served.features.reader.now()
    batch = served.features.history("churn", {"user_id": [20], "time": np.array([at])})
    assert after["score"] == pytest.approx(float(served.predictors["churn"].ensemble.predict(batch)[0, 0]), abs=1e-6)


def test_a_push_that_moves_the_clock_far_is_answered_with_a_warning(trained_shop: Shop, tmp_path: Path) -> None:
    features = Features.open(trained_shop.copy(tmp_path / "shop").root)  # its own: the others' clock stays
    with running(app({}, features)) as client:
        near, far = (
            client.post("/v1/events", json={"events": [purchase(20, name, timestamp=at)]}).raise_for_status().json()
            for name, at in (("near", LATER), ("far", "2024-06-09T00:00:00Z"))
        )
    assert near["warnings"] == []
    assert [warning[:27] for warning in far["warnings"]] == ['"now" moved by 8.0 days, fr']


def test_a_user_who_was_unknown_is_known_after_a_push(served: Served) -> None:
    assert served.one(77_001)["known"] is False
    served.push(purchase(77_001, "newcomer")).raise_for_status()
    assert served.one(77_001)["known"] is True


def test_the_same_push_again_adds_nothing(served: Served) -> None:
    for body in ({"events": [purchase(21, "again")]}, {"events": [purchase(21)] * 2, "idempotency_key": "again"}):
        first, second = (served.client.post("/v1/events", json=body).raise_for_status().json() for _ in range(2))
        assert (first["added"], first["repeated"]) == (len(body["events"]), 0)
        assert (second["added"], second["repeated"]) == (0, len(body["events"]))
        assert second["version"] == first["version"]


def test_a_key_that_came_with_other_events_is_refused_and_loses_nothing(served: Served) -> None:
    first = {"events": [purchase(24)], "idempotency_key": "checkout"}
    served.client.post("/v1/events", json=first).raise_for_status()
    other = served.client.post("/v1/events", json={"events": [purchase(25)], "idempotency_key": "checkout"})
    assert (other.status_code, other.json()["error"]["type"]) == (422, "reused_key")
    assert "nothing of this push was taken" in other.json()["error"]["message"]
    own = served.client.post("/v1/events", json={"events": [purchase(25)], "idempotency_key": "checkout 2"})
    assert own.raise_for_status().json()["added"] == 1


def test_a_push_is_in_the_log_of_whoever_opens_it(served: Served) -> None:
    version = served.push(purchase(22, "durable", value=1.25)).raise_for_status().json()["version"]
    other = Features.open(served.features.reader.root.parents[1]).reader.view()
    assert other.version >= version
    table = other.log.table(columns=["event_id", "user_id", "value"])
    assert {"event_id": "durable", "user_id": 22, "value": 1.25} in table.to_pylist()


def test_events_that_cannot_be_taken_are_counted_by_reason_and_the_others_are_taken(served: Served) -> None:
    events = [
        purchase(23, "good"),
        purchase(23, "time", timestamp="yesterday"),
        purchase(23, "who", user_id=None),
        {**purchase(23, "text"), "user_id": "23"},
        purchase(23, "future", timestamp="2999-01-01T00:00:00Z"),
        purchase(23, "half", event_type="\ud800"),
        purchase(23, "colour", colour="red"),
    ]
    report = served.client.post("/v1/events", content=json.dumps({"events": events}), headers=JSON).raise_for_status().json()
    assert (report["rows"], report["added"], report["ignored"]) == (7, 2, ["colour"])
    assert report["quarantined"] == {
        "event_type_invalid": 1,
        "timestamp_after_now": 1,
        "timestamp_unreadable": 1,
        "user_id_invalid": 1,
        "user_id_null": 1,
    }


# Mistakes

JSON = {"Content-Type": "application/json"}
BODIES: dict[str, tuple[str, Any, int, str, str]] = {
    "unknown model": ("predict", {"model": "chrun", "users": [1]}, 404, "unknown_model", "choose one of: campaign, churn"),
    "model left out": ("predict", {"users": [1]}, 422, "invalid_request", "model: Field required"),
    "no object": (
        "predict",
        [1],
        422,
        "invalid_request",
        "the body: it is a JSON list; expected one object with its fields, as in ",
    ),
    "a bare list of events": (
        "events",
        [{"event_id": "e", "user_id": 1}],
        422,
        "invalid_request",
        'it is a JSON list; expected one object with its fields, as in {"events": [{"event_id": ',
    ),
    "unknown field": (
        "predict",
        {"model": "churn", "user": [1]},
        422,
        "invalid_request",
        "'user'; choose one of: at, model, rows, users",
    ),
    "neither rows nor users": ("predict", {"model": "churn"}, 422, "invalid_request", "either rows or users"),
    "both rows and users": (
        "predict",
        {"model": "churn", "rows": [], "users": []},
        422,
        "invalid_request",
        "either rows or users",
    ),
    "missing key": ("predict", {"model": "churn", "rows": [{"user_id": 1}, {}]}, 422, "usage", "row 1 of 2 has no user_id"),
    "empty row": ("predict", {"model": "churn", "rows": [{}]}, 422, "usage", "1 rows hold nothing"),
    "missing pair key": ("predict", {"model": "campaign", "users": [1]}, 422, "usage", "no column 'campaign_id'"),
    "null key": ("predict", {"model": "churn", "rows": [{"user_id": None}]}, 422, "usage", "row 0 of 1 has no user_id"),
    "unknown column": (
        "predict",
        {"model": "churn", "rows": [{"user_id": 1, "usr": 2}]},
        422,
        "usage",
        "row 0: unknown column 'usr'",
    ),
    "text for a number": ("predict", {"model": "churn", "users": ["1"]}, 422, "identifier", "user_id '1' is string"),
    "mixed types": (
        "predict",
        {"model": "churn", "users": [1, "1"]},
        422,
        "usage",
        "'user_id' cannot be read: row 0 holds 1, row 1 holds '1'; expected values of one type",
    ),
    "boolean": (
        "predict",
        {"model": "churn", "users": [1, True, 1.5]},
        422,
        "invalid_request",
        "users.1: seen true; expected a whole number or text; users.2: seen 1.5; expected a whole number or text",
    ),
    "long text": ("predict", {"model": "churn", "users": 7 * ["x" * 99], "at": [1]}, 422, "invalid_request", "at: seen a list; "),
    "many mistakes": ("predict", {"model": "churn", "users": [1.5] * 7}, 422, "invalid_request", "text; 2 more"),
    "fraction": (
        "predict",
        {"model": "churn", "rows": [{"user_id": 1.5}]},
        422,
        "identifier",
        "user_id 1.5 is no identifier of this log; expected whole numbers of at most 64 bits, as in 42",
    ),
    "number beyond 64 bits": (
        "predict",
        {"model": "churn", "users": [1, 2**63]},
        422,
        "usage",
        "'user_id' cannot be read: row 1 holds 9223372036854775808; expected whole numbers of at most 64 bits",
    ),
    "partner of the wrong type": (
        "predict",
        {"model": "campaign", "rows": [{"user_id": 1, "campaign_id": "x"}]},
        422,
        "identifier",
        "campaign_id 'x' is string",
    ),
    "nested key": (
        "predict",
        {"model": "churn", "rows": [{"user_id": [1]}]},
        422,
        "invalid_request",
        "rows.0.user_id: seen a list; ",
    ),
    "naive at": (
        "predict",
        {"model": "churn", "users": [1], "at": "2024-02-01T00:00:00"},
        422,
        "invalid_request",
        "has no offset",
    ),
    "unreadable at": ("predict", {"model": "churn", "users": [1], "at": "noon"}, 422, "invalid_request", "expected ISO 8601"),
    "number for at": ("predict", {"model": "churn", "users": [1], "at": 0}, 422, "invalid_request", "at: "),
    "too many rows": (
        "predict",
        {"model": "churn", "users": [1] * (MAX_ROWS + 1)},
        422,
        "invalid_request",
        "at most 10000 items",
    ),
    "unknown model to explain": (
        "explain",
        {"model": "chrun", "users": [1]},
        404,
        "unknown_model",
        "choose one of: campaign, churn",
    ),
    "too many to explain": (
        "explain",
        {"model": "churn", "users": [1] * (MAX_EXPLAINED + 1)},
        422,
        "invalid_request",
        "users: List should have at most 100 items",
    ),
    "too many rows to explain": (
        "explain",
        {"model": "churn", "rows": [{"user_id": 1}] * (MAX_EXPLAINED + 1)},
        422,
        "invalid_request",
        "rows: List should have at most 100 items",
    ),
    "nobody to explain": ("explain", {"model": "churn"}, 422, "invalid_request", "either rows or users"),
    "unknown option of an explanation": (
        "explain",
        {"model": "churn", "users": [1], "of": "yes"},
        422,
        "invalid_request",
        "'of'; choose one of: at, events, model, output, rows, top, users",
    ),
    "unknown output": ("explain", {"model": "churn", "users": [1], "output": "yes"}, 422, "usage", "unknown output 'yes'"),
    "no columns": ("explain", {"model": "churn", "users": [1], "top": 0}, 422, "invalid_request", "top: Input should be greater"),
    "too many columns": ("explain", {"model": "churn", "users": [1], "top": 101}, 422, "invalid_request", "top: Input should be"),
    "too many events to leave out": (
        "explain",
        {"model": "churn", "users": [1], "events": 51},
        422,
        "invalid_request",
        "events: Input should be less than or equal to 50",
    ),
    "naive at of an explanation": (
        "explain",
        {"model": "churn", "users": [1], "at": "2024-02-01T00:00:00"},
        422,
        "invalid_request",
        "has no offset",
    ),
    "unknown column to explain": (
        "explain",
        {"model": "churn", "rows": [{"user_id": 1, "usr": 2}]},
        422,
        "usage",
        "row 0: unknown column 'usr'",
    ),
    "text for a number to explain": ("explain", {"model": "churn", "users": ["1"]}, 422, "identifier", "user_id '1' is string"),
    "missing pair key to explain": ("explain", {"model": "campaign", "users": [1]}, 422, "usage", "no column 'campaign_id'"),
    "no events": ("events", {"events": []}, 422, "invalid_request", "at least 1 item"),
    "too many events": ("events", {"events": [{}] * (MAX_ROWS + 1)}, 422, "invalid_request", "at most 10000 items"),
    "events without ids": ("events", {"events": [purchase(1)]}, 422, "usage", "no event_id and the push has no idempotency key"),
    "empty idempotency key": (
        "events",
        {"events": [purchase(1)], "idempotency_key": ""},
        422,
        "invalid_request",
        "idempotency_key",
    ),
    "long idempotency key": (
        "events",
        {"events": [purchase(1)], "idempotency_key": "k" * 201},
        422,
        "invalid_request",
        "idempotency_key",
    ),
    "events without user": (
        "events",
        {"events": [{"event_id": "x", "event_type": "view", "timestamp": LATER}]},
        422,
        "schema",
        "no column 'user_id'; found: event_id, event_type, timestamp; expected events with user_id, event_type and timestamp",
    ),
    "naive event time": (
        "events",
        {"events": [purchase(1, "n", timestamp="2024-05-01T00:00:00")]},
        422,
        "schema",
        "holds naive times ('2024-05-01T00:00:00'); expected times with an offset, as in 2018-01-01T12:00:00Z",
    ),
    "an event that is no object": ("events", {"events": [1]}, 422, "invalid_request", "events.0"),
    "unknown field beside events": ("events", {"events": [], "key": "x"}, 422, "invalid_request", "'key'; choose one of: events"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_cannot_be_meant_is_refused_with_what_was_expected(served: Served, case: str) -> None:
    route, body, status, kind, message = BODIES[case]
    count = served.features.reader.view().log.count()
    found = problem(served.client.post(f"/v1/{route}", json=body))
    assert found[:2] == (status, kind)
    assert message in found[2]
    assert not any(word in found[2] for word in ("zoo.toml", "mapping=", "zoo init"))  # advice for files, which a push is not
    assert len(found[2]) < 2_000
    assert served.features.reader.view().log.count() == count
    assert served.predict(users=[1]).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
        (b'{"model": "churn"', JSON, 400, "malformed_json"),
        (b"\xff\xfe", JSON, 400, "malformed_json"),
        (b"[" * 100_000, JSON, 400, "malformed_json"),
        (b'{"model": "churn", "users": [' + b"9" * 5_000 + b"]}", JSON, 400, "malformed_json"),
        (b"", JSON, 400, "malformed_json"),
        (b"", {}, 400, "malformed_json"),
        (b"null", JSON, 422, "invalid_request"),
        (b'{"model": "churn", "users": [1]}', {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"model": "churn", "users": [1]}', {}, 415, "unsupported_media_type"),
        (b" " * (MAX_BODY + 1), JSON, 413, "too_large"),
        (b'{"model": "churn", "rows": [{"user_id": NaN}]}', JSON, 422, "identifier"),
        (b'{"model": "\\ud800", "users": [1]}', JSON, 404, "unknown_model"),
        (b'{"model": "churn", "rows": [{"user_id": "\\ud800"}]}', JSON, 422, "usage"),
        (b'{"model": "churn", "rows": [{"\\ud800": 1}]}', JSON, 422, "usage"),
        (b'{"model": "churn", "users": [1], "\\ud800": 1}', JSON, 422, "invalid_request"),
    ],
)
def test_bytes_that_are_no_request_are_refused(
    served: Served, content: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    assert problem(served.client.post("/v1/predict", content=content, headers=headers))[:2] == (status, kind)
    assert served.predict(users=[1]).status_code == 200


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain", "/v1/recommend", "/v1/events", "/v2/models/churn/infer"])
def test_every_route_says_of_a_body_that_is_no_object_what_it_expects(served: Served, path: str) -> None:
    said = {
        b"": (400, "the body is empty; expected one object with its fields, as in {"),
        b"null": (422, "the body: it is a JSON null; expected one object with its fields, as in {"),
        b"[1]": (422, "the body: it is a JSON list; expected one object with its fields, as in {"),
        b'{"a": [{"b": 1, "c": 2, "b": 3}]}': (422, 'the body: an object has the field "b" 2 times; expected it once'),
    }
    for content, (status, message) in said.items():
        for kind in ("application/json", "application/json; charset=utf-8"):
            answer = served.client.post(path, content=content, headers={"Content-Type": kind})
            error = answer.json()["error"]
            assert answer.status_code == status
            assert (error if path.startswith("/v2") else error["message"]).startswith(message)


def test_a_body_without_stated_length_is_cut_off_at_the_limit(served: Served) -> None:
    parts = (b" " * 65_536 for _ in range(MAX_BODY // 65_536 + 1))
    assert problem(served.client.post("/v1/predict", content=parts, headers=JSON))[:2] == (413, "too_large")


def test_routes_and_methods_that_are_not_there_are_named(served: Served) -> None:
    assert problem(served.client.get("/v1/nothing")) == (
        404,
        "not_found",
        "there is nothing at GET /v1/nothing; GET /openapi.json lists the routes",
    )
    status, kind, message = problem(served.client.get("/v1/predict"))
    assert (status, kind) == (405, "method_not_allowed")
    assert "allowed: POST" in message
    assert problem(served.client.post("/v1/predict/", json={"model": "churn", "users": [1]})) == (
        404,
        "not_found",
        "there is nothing at POST /v1/predict/; GET /openapi.json lists the routes; leave out the / at its end",
    )
    for page in ("/docs", "/redoc"):
        assert served.client.get(page).status_code == 404


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health", "/metrics", "/v1/models", "/v2/health/ready", "/"])
def test_head_is_answered_as_get_without_the_body(served: Served, path: str) -> None:
    whole, head = served.client.get(path), served.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert served.client.head("/v1/predict").status_code == 405
    assert served.client.get("/health/live").json() == {"status": "live"}  # by the same connection


texts = st.text(st.characters(), max_size=5)  # halves of surrogate pairs among them, which JSON can bring
ids = st.one_of(st.integers(), texts, st.booleans(), st.none(), st.floats())
scraps = st.recursive(ids, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(texts, deeper, max_size=3))
instants = st.one_of(st.datetimes().map(str), st.datetimes(timezones=st.timezones()).map(lambda t: t.isoformat()), scraps)


def changed(good: Any, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects drawn from ``good`` with up to two fields left out or replaced: near enough to a request to be read far."""
    scraped = st.dictionaries(st.sampled_from([*values, "x"]), st.just(...) | st.none() | scraps, max_size=2)
    fresh = st.fixed_dictionaries({}, optional=values)
    whole = st.builds(lambda one, two, three: {**one, **two, **three}, good, fresh, scraped)
    return whole.map(lambda body: {name: value for name, value in body.items() if value is not ...})


users = st.integers(1, USERS)
rows = st.lists(changed(st.builds(lambda user: {"user_id": user}, users), user_id=ids, campaign_id=ids), max_size=3)
predicts = changed(
    st.builds(lambda model, rows: {"model": model, "rows": rows}, st.sampled_from(["churn", "campaign"]), rows),
    at=instants,
    users=st.lists(ids, max_size=3),
)
mutants = changed(
    st.builds(lambda number: purchase(25, f"mutant-{number}"), st.integers()),
    **dict.fromkeys(("user_id", "item_id", "event_type", "event_id", "value", "session", "campaign_id", "seq"), ids),
    timestamp=instants,
)
pushes = changed(st.builds(lambda events: {"events": events}, st.lists(mutants, max_size=3)), idempotency_key=texts)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(body=predicts | scraps)
def test_no_predict_body_makes_the_server_fail(served: Served, body: Any) -> None:
    response = served.client.post("/v1/predict", content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 404, 422), response.text
    if response.status_code == 200:
        assert len(response.json()["answers"]) == len(body.get("rows") or body.get("users") or ())
    else:
        problem(response)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(body=pushes | scraps)
def test_no_push_makes_the_server_fail(served: Served, body: Any) -> None:
    response = served.client.post("/v1/events", content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 422), response.text
    if response.status_code == 200:
        report = response.json()
        assert report["rows"] == report["added"] + report["repeated"] + sum(report["quarantined"].values())
    else:
        problem(response)


# Failures


@dataclass(frozen=True)
class Broken:
    """A predictor whose every answer is this error."""

    error: Exception
    version: Any
    entities: tuple[str, ...] = ("user_id",)
    context: tuple[str, ...] = ()

    def rows(self, *_: Any, **__: Any) -> Any:
        raise self.error

    def warm(self, _: float) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(ZeroDivisionError("a secret of ours"), 500, "internal"), (ZooError("the disk at /secret is full"), 503, "unavailable")],
)
def test_a_failure_is_logged_with_its_cause_and_answered_without_it(
    served: Served, caplog: pytest.LogCaptureFixture, error: Exception, status: int, kind: str
) -> None:
    broken = Broken(error, replace(served.predictors["churn"].version, number=9_999))
    with running(app({"churn": broken}, served.features)) as client:  # type: ignore[dict-item]
        for response in (client.post("/v1/predict", json={"model": "churn", "users": [1]}), client.get("/health/ready")):
            assert problem(response)[:2] == (status, kind)
            assert "secret" not in response.text
        assert client.get("/health/live").status_code == 200
        assert 'zoo_answers_total{outcome="error",version="churn@9999"}' in client.get("/metrics").text
    causes = [r.exc_info[1] for r in caplog.records if r.exc_info]
    assert causes == [error, error]


def test_features_that_cannot_be_read_are_503_until_they_can(trained_shop: Shop, tmp_path: Path) -> None:
    shop = trained_shop.copy(tmp_path / "shop")
    store = shop.root / "data" / "online.db"
    whole = store.read_bytes()
    for leftover in store.parent.glob("online.db-*"):
        leftover.unlink()
    store.write_bytes(b"no database at all" * 1000)
    predictors, features = opened(shop)
    with running(app(predictors, features)) as client:
        for response in (client.post("/v1/predict", json={"model": "churn", "users": [1]}), client.get("/health/ready")):
            assert problem(response)[:2] == (503, "features")
            assert str(shop.root) not in response.text
        store.write_bytes(whole)
        time.sleep(KEPT)
        assert client.get("/health/ready").status_code == 200
        assert client.post("/v1/predict", json={"model": "churn", "users": [1]}).status_code == 200


# Many at once


def test_predictions_and_pushes_at_once_are_all_answered(served: Served) -> None:
    users = list(range(100, 108))
    rounds = 12
    before = {user: served.one(user) for user in users}

    def work(user: int) -> list[dict[str, Any]]:
        seen = []
        with httpx.Client(base_url=served.client.base_url, timeout=60) as client:
            for number in range(rounds):
                if number % 3 == 0:
                    body = {"events": [purchase(user, f"busy-{user}-{number}", timestamp="2024-05-31T00:00:00Z")]}
                    assert client.post("/v1/events", json=body).json()["added"] == 1
                answer = client.post("/v1/predict", json={"model": "churn", "users": [user]})
                assert answer.status_code == 200, answer.text
                seen.append(answer.json()["answers"][0])
        return seen

    with ThreadPoolExecutor(len(users)) as pool:
        seen = dict(zip(users, pool.map(work, users)))
    for user in users:
        assert [a["keys"]["user_id"] for a in seen[user]] == [user] * rounds
        # each push was in the log before the predictions that followed it
        assert all(a["newest_event_age"] < before[user]["newest_event_age"] for a in seen[user])
    events = served.features.reader.view().log.table(columns=["event_id"])["event_id"].to_pylist()
    assert len([e for e in events if e and e.startswith("busy-")]) == len(users) * 4
    now = served.features.reader.now()
    batch = served.features.history("churn", {"user_id": users, "time": np.full(len(users), now)})
    final = served.predict(users=users).json()["answers"]
    expected = served.predictors["churn"].ensemble.predict(batch)[:, 0]
    assert np.allclose([a["score"] for a in final], expected, atol=1e-6)


# OpenAPI


def test_the_openapi_document_is_whole(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert routes >= {
        ("/health", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/v1/models", "get"),
        ("/v1/predict", "post"),
        ("/v1/recommend", "post"),
        ("/v1/explain", "post"),
        ("/v1/events", "post"),
        ("/v1/reload", "post"),
        ("/v2/models/{name}/infer", "post"),
    }
    for reference in re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document)):
        found: Any = document
        for step in reference.split("/"):
            found = found[step]
        assert found
    for path in ("/v1/predict", "/v1/explain", "/v1/events"):
        responses = document["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "403", "408", "413", "415", "421", "422", "431", "500", "503"} <= responses.keys()
        for status in responses.keys() - {"200"}:
            schema = responses[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(routes)


@pytest.mark.parametrize(
    ("message", "path"), [(PredictRequest, "/v1/predict"), (ExplainRequest, "/v1/explain"), (EventsRequest, "/v1/events")]
)
def test_the_examples_of_the_openapi_document_work(served: Served, message: Any, path: str) -> None:
    schemas = served.client.get("/openapi.json").json()["components"]["schemas"]
    (example,) = schemas[message.__name__]["examples"]
    assert served.client.post(path, json=example).status_code == 200


def test_answers_are_what_the_openapi_document_says(served: Served) -> None:
    from zoo.service.messages import Explained, Explanations, Models, Predictions, Report, Status

    explained = served.client.post("/v1/explain", json={"model": "churn", "users": [1, 999_999]})
    Explanations.model_validate_json(explained.content, strict=True)
    assert explained.json()["answers"][0].keys() == Explained.model_fields.keys()
    Predictions.model_validate_json(served.predict(users=[1, 999_999]).content, strict=True)
    Report.model_validate_json(served.push(purchase(24, "typed")).content, strict=True)
    Models.model_validate_json(served.client.get("/v1/models").content, strict=True)
    Status.model_validate_json(served.client.get("/health/ready").content, strict=True)


# Starting and stopping


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.com", ""])
def test_only_loopback_addresses_are_served(trained_shop: Shop, host: str) -> None:
    with pytest.raises(UsageError, match=r"is no loopback address; expected 127\.0\.0\.1, ::1 or localhost"):
        serve(trained_shop.root, ["churn"], host)


def test_what_cannot_be_served_is_refused_before_anything_listens(trained_shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model named"):
        serve(trained_shop.root, [])
    with pytest.raises(UsageError, match="'churn' and 'churn@1' are one model"):
        serve(trained_shop.root, ["churn", "churn@1"])
    with pytest.raises(UsageError, match=r"no zoo\.toml"):
        serve(tmp_path, ["churn"])
    with pytest.raises(RegistryError, match="unknown model 'chrun'; choose one of: campaign, churn"):
        serve(trained_shop.root, ["chrun"], port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="choose another port"):
        serve(trained_shop.root, ["churn"], port=taken.getsockname()[1])


def test_a_server_answers_callers_of_its_own_address_and_stops_on_ctrl_c(trained_shop: Shop, tmp_path: Path) -> None:
    shop = trained_shop.copy(tmp_path / "shop")
    code = f"from zoo.service import serve; serve({str(shop.root)!r}, ['churn', 'campaign'], port=0)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    try:
        address = next(
            m[1] for line in process.stderr if (m := re.search(r"churn@1, campaign@1 at (http://127\.0\.0\.1:\d+)", line))
        )
        with httpx.Client(base_url=address, timeout=60) as client:
            assert client.get("/health/ready").json()["versions"] == {"churn@1": "ready", "campaign@1": "ready"}
            assert [card["version"] for card in client.get("/v1/models").json()["models"]] == ["churn@1", "campaign@1"]
            assert client.post("/v1/events", json={"events": [purchase(30, "first")]}).json()["added"] == 1
            answer = client.post("/v1/predict", json={"model": "churn", "users": [30]}).json()["answers"][0]
            assert answer["newest_event_age"] < 1
            assert client.get("/health/live", headers={"Host": "localhost:1"}).status_code == 200
            # what a page with a name of its own for 127.0.0.1 would send
            for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
                assert problem(client.get("/health/live", headers={"Host": host}))[:2] == (421, "wrong_host")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 0
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
