"""What readiness says: who can answer at this moment, or by its policy, and how often that is looked at."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from shop import Shop
from test_degradation import fail, with_faults
from test_service import opened, problem, running
from test_service_versions import promote, registry

from zoo.errors import FeatureError, PluginError
from zoo.features import Features
from zoo.policy import Policy
from zoo.predictor import Predictor, State
from zoo.project import Project
from zoo.service import app, readiness
from zoo.service.versions import Source, Versions


def lose_store(shop: Shop) -> None:
    """The online store holds what it cannot read."""
    store = shop.root / "data" / "online.db"
    for leftover in store.parent.glob("online.db-*"):
        leftover.unlink()
    store.write_bytes(b"no database at all" * 1000)


def declared(shop: Shop, policy: Policy) -> int:
    """The champion's artefact as a version of its own, trained under this policy."""
    with registry(shop) as found:
        version, artefact = found.load("churn")
        return found.register("churn", artefact, version.metrics, {**version.lineage, "serving": policy.facts()}).number


@pytest.fixture
def shop(trained_shop: Shop, tmp_path: Path) -> Shop:
    return trained_shop.copy(tmp_path / "shop")


@pytest.mark.parametrize("store", ["cold", "last_known"])
def test_without_the_store_a_model_is_ready_by_its_policy_and_says_degraded(shop: Shop, store: Any) -> None:
    predictors, features = opened(shop)
    lose_store(shop)
    able = replace(predictors["churn"], policy=Policy(store=store))
    with running(app({"churn": able}, features)) as client:
        (answer,) = client.post("/v1/predict", json={"model": "churn", "users": [1]}).raise_for_status().json()["answers"]
        assert answer["features"] == "cold"
        found = client.get("/health/ready")
        told = {"status": "degraded", "versions": {"churn@1": "degraded"}}
        assert (found.status_code, found.json()) == (200, told)
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/models/churn/ready").json() == {"name": "churn", "ready": True}
    with running(app({"churn": able, "campaign": predictors["campaign"]}, features)) as client:  # which refuses
        assert problem(client.get("/health/ready"))[:2] == (503, "features")
        assert client.get("/v2/models/campaign/ready").status_code == 503
        assert client.get("/v2/models/churn/ready").status_code == 200


def test_a_lost_member_is_degraded_and_a_required_one_is_not_ready(trained_shop: Shop) -> None:
    predictors, features = opened(trained_shop)
    lame = with_faults(predictors["churn"], fail, "gru")
    assert lame.warm() == lame.warm(30) == State("fresh", ("gru",))
    with running(app({"churn": lame}, features)) as client:
        told = {"status": "degraded", "versions": {"churn@1": "degraded"}}
        assert client.get("/health/ready").json() == told
    with running(app({"churn": lame, "campaign": predictors["campaign"]}, features)) as client:
        told = {"status": "degraded", "versions": {"churn@1": "degraded", "campaign@1": "ready"}}
        assert client.get("/health/ready").json() == told
    needs = replace(lame, policy=Policy(required=("gru",)))
    with pytest.raises(PluginError, match="gru failed"):
        needs.warm()
    with running(app({"churn": needs}, features)) as client:
        assert problem(client.get("/health/ready"))[:2] == (500, "model")


def test_a_version_whose_policy_answers_without_the_store_is_loaded_and_takes_over(shop: Shop) -> None:
    able, refuses = declared(shop, Policy(store="cold")), declared(shop, Policy())
    project = Project.open(shop.root)
    first = Source(project, Features.open(shop.root)).load("churn@1")
    lose_store(shop)
    source = Source(project, Features.open(shop.root))  # a connection that is open may go on with what it has read
    versions = Versions({"churn": first}, {"churn": "churn"}, source)
    promote(shop, refuses)
    assert versions.look() == {}
    assert versions.troubles["churn"].kind == "FeatureError"
    promote(shop, able)
    assert versions.look() == {"churn": f"churn@{able}"}
    assert source.load(f"churn@{able}").predict(users=[1])["features"].to_pylist() == [
        "cold"
    ]  # as the service does when it starts
    with pytest.raises(FeatureError):
        source.load(f"churn@{refuses}")


def test_a_version_with_a_member_that_does_not_score_does_not_take_over(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Predictor.load

    def load(*asked: Any, **more: Any) -> Predictor:
        return with_faults(real(*asked, **more), fail, "gru")

    monkeypatch.setattr(Predictor, "load", load)
    with pytest.raises(PluginError, match="churn@1 was loaded, but gru gave no score"):
        Source(Project.open(shop.root), Features.open(shop.root)).load("churn")


def test_one_check_answers_all_who_ask_meanwhile_and_for_a_while(trained_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    predictors, features = opened(trained_shop)
    let, checks, real = threading.Event(), [], Predictor.warm

    def warm(self: Predictor, *asked: Any) -> State:
        checks.append(self.version.reference)
        assert let.wait(60)
        return real(self, *asked)

    monkeypatch.setattr(Predictor, "warm", warm)
    monkeypatch.setattr(readiness, "KEPT", 600.0)
    with running(app(predictors, features)) as client, ThreadPoolExecutor(60) as pool:
        url = str(client.base_url)
        asked = [pool.submit(httpx.get, f"{url}{path}", timeout=60) for path in ("/health/ready", "/v2/health/ready") * 30]
        while len(checks) < 2:
            time.sleep(0.01)
        assert client.post("/v1/reload").json() == {"swapped": {}}  # they hold no thread of the pool that other routes have
        let.set()
        assert {each.result().status_code for each in asked} == {200}
        assert client.get("/health/ready").status_code == 200
        assert sorted(checks) == ["campaign@1", "churn@1"]
    monkeypatch.setattr(readiness, "KEPT", 0.01)
    with running(app(predictors, features)) as client:
        for _ in range(2):
            assert client.get("/health/ready").status_code == 200
            time.sleep(0.1)
        assert len(checks) == 6


def test_a_check_that_hangs_is_answered_all_the_same(trained_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    predictors, features = opened(trained_shop)
    let, real = threading.Event(), Features.online

    def online(self: Features, *asked: Any, **more: Any) -> Any:
        assert let.wait(60)
        return real(self, *asked, **more)

    monkeypatch.setattr(Features, "online", online)
    monkeypatch.setattr(readiness, "WITHIN", 0.4)
    try:
        with running(app({"churn": predictors["churn"]}, features)) as client:
            assert problem(client.get("/health/ready"))[:2] == (503, "unavailable")
        able = replace(predictors["churn"], policy=Policy(store="cold"))
        monkeypatch.setattr(readiness, "WITHIN", 8.0)
        with running(app({"churn": able}, features)) as client:
            assert client.get("/health/ready").json()["status"] == "degraded"
    finally:
        let.set()
