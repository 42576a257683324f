"""A running service follows the registry: versions swap whole, and one that cannot answer leaves the former one serving."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pytest
from shop import Shop
from test_service import running
from typer.testing import CliRunner

from zoo.cli.app import app as command
from zoo.contract import Target
from zoo.errors import RegistryError, UsageError
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry
from zoo.service import app
from zoo.service import versions as watching
from zoo.service.settings import Settings
from zoo.service.shadow import Shadows
from zoo.service.versions import Source, Versions, Watch


def registry(shop: Shop) -> Registry:
    project = Project.open(shop.root)
    return Registry.open(project.registry_url, project.artefacts)


def register_again(shop: Shop, model: str = "churn") -> int:
    """The champion's artefact under the next number, so that two versions answer alike."""
    with registry(shop) as found:
        version, artefact = found.load(model)
        again = found.register(model, artefact, version.metrics, version.lineage)
    return again.number


def served(shop: Shop, reference: str = "churn", share: float = 0.0, shadow: float = 0.0) -> tuple[Versions, Features]:
    features = Features.open(shop.root)
    source = Source(Project.open(shop.root), features)
    shares = [{"churn": each} if each else {} for each in (share, shadow)]
    return Versions({"churn": source.load(reference)}, {"churn": reference}, source, *shares), features


@pytest.fixture
def shop(trained_shop: Shop, tmp_path: Path) -> Iterator[Shop]:
    copy = trained_shop.copy(tmp_path / "shop")
    register_again(copy)
    yield copy
    shutil.rmtree(copy.root)


def promote(shop: Shop, number: int, alias: str = "champion", model: str = "churn") -> None:
    with registry(shop) as found:
        found.promote(model, number, alias)


def corrupt(versions: Versions) -> None:
    """Every artefact, after it was loaded."""
    source = versions._source
    assert source is not None
    for path in source.project.artefacts.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_every_answer_of_a_steady_load_is_whole_while_versions_swap(shop: Shop) -> None:
    versions, features = served(shop)
    stop = threading.Event()
    with running(app(versions, features)) as client, ThreadPoolExecutor(3) as pool:

        def ask(_: int) -> list[set[str]]:
            seen = []
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                while not stop.is_set():
                    response = own.post("/v1/predict", json={"model": "churn", "users": [1, 2, 3]})
                    assert response.status_code == 200, response.text
                    seen.append({answer["version"] for answer in response.json()["answers"]})
            return seen

        asking = [pool.submit(ask, number) for number in range(3)]
        swapped = []
        for number in range(8):
            promote(shop, 2 - number % 2)
            swapped.append(versions.look())
        stop.set()
        seen = [each for one in asking for each in one.result()]
    assert swapped == [{"churn": f"churn@{2 - n % 2}"} for n in range(8)]
    assert {len(each) for each in seen} == {1}
    assert set().union(*seen) == {"churn@1", "churn@2"}


def test_a_corrupt_candidate_leaves_the_former_version_serving_and_is_told(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    versions, features = served(shop)
    promote(shop, 2)
    corrupt(versions)
    with running(app(versions, features)) as client:
        assert versions.look() == {}
        assert client.post("/v1/predict", json={"model": "churn", "users": [1]}).json()["answers"][0]["version"] == "churn@1"
        health = client.get("/health").json()
        assert health["status"] == "degraded"
        assert health["models"]["churn"] == {
            "version": "churn@1",
            "candidate": "churn@2",
            "trouble": "ArtefactError",
            "canary": None,
            "canary_trouble": None,
            "shadow": None,
            "shadow_trouble": None,
        }
        assert "churn@2 cannot answer, churn@1 goes on" in caplog.text
        told = caplog.text.count("cannot answer")
        versions.look()
        assert caplog.text.count("cannot answer") == told  # it is not tried at every look
        versions.look(retry=True)
        assert caplog.text.count("cannot answer") == told + 1
        assert client.get("/health").json()["registry"] is True


def test_a_registry_that_does_not_answer_leaves_versions_as_they_are(shop: Shop) -> None:
    versions, features = served(shop)
    path = shop.root / "data" / "registry.db"
    moved = path.rename(path.with_suffix(".away"))
    with running(app(versions, features)) as client:
        assert versions.look() == {}
        assert client.get("/health").json()["registry"] is False
        assert client.post("/v1/predict", json={"model": "churn", "users": [1]}).status_code == 200
        moved.rename(path)
        versions.look()
        assert client.get("/health").json()["status"] == "ok"


def test_a_reference_that_is_gone_keeps_no_other_model_from_following(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    promote(shop, 1, "live")
    references = {"churn": "churn@live", "campaign": "campaign"}
    features = Features.open(shop.root)
    source = Source(Project.open(shop.root), features)
    versions = Versions({model: source.load(reference) for model, reference in references.items()}, references, source)
    with registry(shop) as found:
        found.demote("churn", "live")
    promote(shop, register_again(shop, "campaign"), model="campaign")
    assert versions.look() == {"campaign": "campaign@2"}
    assert versions["churn"].version.reference == "churn@1"
    versions.look()
    assert caplog.text.count("churn@live names no version, churn@1 goes on") == 1  # at one look, not at every one
    with running(app(versions, features)) as client:
        health = client.get("/health").json()
        assert (health["status"], health["registry"]) == ("degraded", True)
        told = {model: (each["candidate"], each["trouble"]) for model, each in health["models"].items()}
        assert told == {"churn": ("churn@live", "UnknownReferenceError"), "campaign": (None, None)}
    promote(shop, 2, "live")
    assert versions.look() == {"churn": "churn@2"}
    assert versions.troubles == {}


def test_aliases_are_those_of_the_newest_look(shop: Shop) -> None:
    versions, features = served(shop)
    with running(app(versions, features)) as client:

        def told() -> list[str]:
            return list(client.get("/v1/models").json()["models"][0]["aliases"])

        assert told() == ["champion"]
        promote(shop, 1, "live")
        assert versions.look() == {}
        assert told() == ["champion", "live"]
        assert "champion, live" in client.get("/").text
        promote(shop, 2)
        assert versions.look() == {"churn": "churn@2"}
        assert told() == ["champion"]


def test_a_version_named_by_number_stays(shop: Shop) -> None:
    versions, _ = served(shop, "churn@1")
    promote(shop, 2)
    assert versions.look() == {}
    assert versions["churn"].version.reference == "churn@1"


def test_a_canary_answers_its_share_and_the_same_user_by_the_same_version(shop: Shop) -> None:
    versions, features = served(shop, share=0.3)
    with running(app(versions, features)) as client:

        def asked(user: int, **more: object) -> str:
            answer = client.post("/v1/predict", json={"model": "churn", "users": [user], **more}).raise_for_status()
            return str(answer.json()["answers"][0]["version"])

        assert {asked(user) for user in range(20)} == {"churn@1"}
        promote(shop, 2, "canary")
        client.post("/v1/reload").raise_for_status()
        by = {user: asked(user) for user in range(200)}
        assert {user: asked(user) for user in range(200)} == by
        assert 30 <= sum(version == "churn@2" for version in by.values()) <= 90
        user = next(user for user, version in by.items() if version == "churn@2")
        rows = client.post("/v1/predict", json={"model": "churn", "rows": [{"user_id": user}]}).raise_for_status().json()
        assert rows["answers"][0]["version"] == "churn@2"
        whys = client.post("/v1/explain", json={"model": "churn", "users": [user], "events": 0}).raise_for_status().json()
        assert whys["answers"][0]["version"] == "churn@2"
        tensor = {"inputs": [{"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user]}]}
        assert client.post("/v2/models/churn/infer", json=tensor).raise_for_status().json()["model_version"] == "2"
        for number in ("1", "2"):
            named = client.post(f"/v2/models/churn/versions/{number}/infer", json=tensor).raise_for_status().json()
            assert named["model_version"] == number
        assert client.get("/v2/models/churn").json()["versions"] == ["1", "2"]
        assert client.post("/v2/models/churn/versions/3/infer", json=tensor).status_code == 404
        counted = client.get("/metrics").text
        assert 'zoo_answers_total{outcome="answered",version="churn@2"}' in counted
        assert "churn@2" in client.get("/", params={"user": user}).text
        assert client.get("/health").json()["models"]["churn"]["canary"] == "churn@2"
        promote(shop, 2)  # it has proved itself
        client.post("/v1/reload").raise_for_status()
        assert {asked(user) for user in range(20)} == {"churn@2"}
        assert client.get("/health").json()["models"]["churn"]["canary"] is None
        with registry(shop) as found:
            found.rollback("churn")
        client.post("/v1/reload").raise_for_status()
        assert {asked(user) for user in range(200)} == {"churn@1"}  # what was tried is tried no more


def compared(client: httpx.Client, requests: int) -> dict[str, Any]:
    """The newest comparison, once the shadow is done with so many requests."""
    for _ in range(600):
        found = client.get("/v1/shadows").raise_for_status().json()["shadows"]
        if found and found[-1]["requests"] + found[-1]["errors"] + found[-1]["dropped"] >= requests:
            return dict(found[-1])
        time.sleep(0.05)
    raise AssertionError(found)


def test_a_shadow_is_asked_the_same_and_answers_nobody(shop: Shop) -> None:
    versions, features = served(shop, shadow=1.0)
    with running(app(versions, features)) as client:

        def ask(users: list[int]) -> list[dict[str, Any]]:
            answers = client.post("/v1/predict", json={"model": "churn", "users": users}).raise_for_status().json()["answers"]
            assert {answer["version"] for answer in answers} == {"churn@1"}
            return list(answers)

        ask([1])
        assert client.get("/v1/shadows").json() == {"shadows": []}
        promote(shop, 2, "shadow")
        client.post("/v1/reload").raise_for_status()
        assert client.get("/health").json()["models"]["churn"]["shadow"] == "churn@2"
        given = [answer["score"] for users in ([1, 2, 3], [4], [5, 6]) for answer in ask(users)]
        found = compared(client, 3)
        assert (found["answered"], found["shadow"], found["rows"], found["errors"], found["dropped"]) == (
            *("churn@1", "churn@2", 6, 0, 0),
        )
        assert found["mean"] == found["shadow_mean"] == pytest.approx(np.mean(given))  # the same artefact
        assert found["apart"] == pytest.approx(0, abs=1e-6)
        assert found["correlation"] == pytest.approx(1)
        assert found["shadow_ms"] > 0
        assert "Shadows" in client.get("/").text
        promote(shop, 2)
        client.post("/v1/reload").raise_for_status()
        assert client.get("/health").json()["models"]["churn"]["shadow"] is None


def done(shadows: Shadows, requests: int) -> list[dict[str, Any]]:
    """What came of so many copies."""
    for _ in range(600):
        found = shadows.told()
        if sum(each["requests"] + each["errors"] for each in found) == requests:
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def other(predictor: Predictor, number: int, model: str = "churn") -> Predictor:
    return replace(predictor, version=replace(predictor.version, number=number, model=model))


def says(*columns: list[float], names: Sequence[str] = ("score",)) -> Callable[[Predictor], pa.Table]:
    return lambda _: pa.table(dict(zip(names, columns, strict=True)))


def test_a_shadow_that_hangs_keeps_no_other(shop: Shop) -> None:
    versions, _ = served(shop)
    answered, shadows, hold = versions["churn"], Shadows(waiting=2), threading.Event()

    def hang(_: Predictor) -> pa.Table:
        assert hold.wait(30)
        return pa.table({"score": [0.5]})

    try:
        for _ in range(4):
            shadows.copy(answered, other(answered, 7), [{"score": 0.5}], hang)
        shadows.copy(other(answered, 1, "campaign"), other(answered, 2, "campaign"), [{"score": 0.5}], says([0.4]))
        hanging, well = done(shadows, 1)
        assert (hanging["shadow"], hanging["requests"], hanging["dropped"]) == ("churn@7", 0, 2)
        assert (well["shadow"], well["requests"], well["dropped"]) == ("campaign@2", 1, 0)
    finally:
        hold.set()


def test_scores_that_are_not_finite_are_errors_and_nothing_else(shop: Shop) -> None:
    versions, _ = served(shop)
    answered, shadows = versions["churn"], Shadows()
    rows = [{"score": 0.2}, {"score": 0.4}]
    for said in ([0.3, 0.4], [float("nan"), 0.4], [None, 0.4], [0.3, float("inf")]):
        shadows.copy(answered, other(answered, 7), rows, says(said))  # type: ignore[arg-type]
    shadows.copy(answered, other(answered, 7), [{"score": None}, {"score": 0.4}], says([0.3, 0.4]))  # type: ignore[arg-type]
    (found,) = done(shadows, 4)
    assert (found["requests"], found["rows"], found["errors"], found["skipped"]) == (1, 2, 3, 1)
    assert found["most"] == pytest.approx(0.1)
    json.dumps(found, allow_nan=False)


def test_the_correlation_of_a_shadow_is_that_of_its_worst_output(shop: Shop) -> None:
    from test_predictor import ensemble_of

    versions, _ = served(shop)
    answered = ensemble_of(versions["churn"], (0.25, 0.25, 0.5), Target("multiclass", classes=("a", "b", "c")))
    names, shadows = ["score:a", "score:b", "score:c"], Shadows()
    given = np.array([[0.70, 0.2, 0.10], [0.72, 0.2, 0.08], [0.71, 0.2, 0.09]])
    said = np.array([[0.72, 0.2, 0.08], [0.70, 0.2, 0.10], [0.71, 0.2, 0.09]])  # a and c the other way round, b as ever
    rows = [dict(zip(names, row)) for row in given.tolist()]
    shadows.copy(answered, other(answered, 7), rows, says(*said.T.tolist(), names=names))
    (found,) = done(shadows, 1)
    assert found["correlation"] == pytest.approx(-1)
    shadows.copy(answered, other(versions["churn"], 8), rows, says(*said.T.tolist(), names=names))
    assert [(each["skipped"], each["requests"]) for each in shadows.told()] == [(0, 1), (1, 0)]


@pytest.mark.parametrize(("apart", "correlation"), [(1e-7, 1.0), (0.0, None)])
def test_a_small_spread_has_a_correlation_and_none_has_none(shop: Shop, apart: float, correlation: float | None) -> None:
    versions, _ = served(shop)
    answered, shadows = versions["churn"], Shadows()
    for step in range(10):
        score = 0.1 + apart * step
        shadows.copy(answered, other(answered, 7), [{"score": score}], says([2 * score]))
    (found,) = done(shadows, 10)
    assert found["correlation"] == (None if correlation is None else pytest.approx(correlation, abs=1e-6))


def test_a_shadow_is_asked_for_the_instant_that_was_answered(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    versions, features = served(shop, shadow=1.0)
    promote(shop, 2, "shadow")
    versions.look()
    hold, real = threading.Event(), Predictor.predict

    def predict(self: Predictor, *asked: Any, **more: Any) -> Any:
        if self.version.number == 2:
            assert hold.wait(30)
        return real(self, *asked, **more)

    monkeypatch.setattr(Predictor, "predict", predict)
    tensor = {"inputs": [{"name": "user_id", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}]}
    with running(app(versions, features)) as client:
        try:
            client.post("/v1/predict", json={"model": "churn", "users": [1, 2, 3]}).raise_for_status()
            client.post("/v2/models/churn/infer", json=tensor).raise_for_status()
            client.post(
                "/v2/models/churn/versions/1/infer", json=tensor
            ).raise_for_status()  # a version that was named has no shadow
            later = {"event_id": "later", "user_id": 900, "event_type": "view", "timestamp": "2024-12-01T00:00:00Z"}
            assert client.post("/v1/events", json={"events": [later]}).json()["added"] == 1  # "now" moves by months
        finally:
            hold.set()
        found = compared(client, 2)
    assert (found["requests"], found["rows"], found["errors"]) == (2, 6, 0)
    assert found["most"] == pytest.approx(0, abs=1e-6)


def test_a_user_whom_no_log_can_hold_is_refused_with_a_canary_or_a_shadow(shop: Shop) -> None:
    body = b'{"model": "churn", "users": ["\\ud800"]}'
    versions, features = served(shop, share=0.5, shadow=1.0)
    with running(app(versions, features)) as client:
        for alias in (None, "canary", "shadow"):
            if alias:
                promote(shop, 2, alias)
                versions.look()
            answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, answer.text


def test_what_a_shadow_says_is_compared_row_by_row(shop: Shop) -> None:
    versions, _ = served(shop)
    answered, shadow = versions["churn"], replace(versions["churn"], version=replace(versions["churn"].version, number=7))
    shadows = Shadows(waiting=2)
    rows = [{"score": 0.2}, {"score": 0.4}, {"score": 0.9}]
    hold = threading.Event()

    def ask(_: Predictor) -> pa.Table:
        assert hold.wait(30)
        return pa.table({"score": [0.3, 0.4, 0.5]})

    def fail(_: Predictor) -> pa.Table:
        raise ZeroDivisionError

    for what in (ask, fail, ask):  # the third finds two that wait
        shadows.copy(answered, shadow, rows, what)
    hold.set()
    (found,) = done(shadows, 2)
    expected = {"answered": "churn@1", "shadow": "churn@7", "rows": 3, "requests": 1, "dropped": 1, "skipped": 0, "errors": 1}
    expected |= {"mean": 0.5, "shadow_mean": 0.4, "apart": 0.5 / 3, "most": 0.4}
    expected["correlation"] = float(np.corrcoef([0.2, 0.4, 0.9], [0.3, 0.4, 0.5])[0, 1])
    assert found.pop("shadow_ms") > 0
    assert found == pytest.approx(expected)


def test_a_shadow_that_fails_is_counted_and_the_answers_stay(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    versions, features = served(shop, shadow=1.0)
    promote(shop, 2, "shadow")
    versions.look()
    real = Predictor.predict

    def predict(self: Predictor, *asked: Any, **more: Any) -> Any:
        if self.version.number == 2:
            raise ZeroDivisionError("a secret")
        return real(self, *asked, **more)

    monkeypatch.setattr(Predictor, "predict", predict)
    with running(app(versions, features)) as client:
        for user in (1, 2):
            assert client.post("/v1/predict", json={"model": "churn", "users": [user]}).status_code == 200
        found = compared(client, 2)
        assert (found["errors"], found["rows"], found["mean"], found["correlation"]) == (2, 0, None, None)


def test_an_alias_is_taken_away_by_one_command(shop: Shop) -> None:
    versions, _ = served(shop, share=0.5)
    promote(shop, 2, "canary")
    versions.look()
    assert [each.version.number for each in versions.answering("churn")] == [1, 2]
    ask = ["--repo", str(shop.root), "demote"]
    assert "it was churn@2" in CliRunner().invoke(command, [*ask, "churn@canary"]).output
    versions.look()
    assert [each.version.number for each in versions.answering("churn")] == [1]
    for reference in ("churn", "churn@2", "churn@champion", "churn@canary"):
        assert CliRunner().invoke(command, [*ask, reference]).exit_code == 2


def test_another_canary_meets_other_users(shop: Shop) -> None:
    versions, _ = served(shop, share=0.5)
    met = []
    for _ in range(2):
        promote(shop, register_again(shop), "canary")
        versions.look()
        met.append([versions.of("churn", user).version.number != 1 for user in range(200)])
    both = np.logical_and(*met).sum()
    assert 30 <= both <= 70  # as if drawn anew: 50 of 200


def test_a_canary_that_cannot_be_loaded_answers_nobody_and_is_told(shop: Shop) -> None:
    versions, features = served(shop, share=0.99)
    promote(shop, 2, "canary")
    corrupt(versions)
    with running(app(versions, features)) as client:
        assert versions.look() == {}
        health = client.get("/health").json()
        assert health["status"] == "degraded"
        assert (health["models"]["churn"]["canary"], health["models"]["churn"]["canary_trouble"]) == (None, "ArtefactError")
        answers = (
            client.post("/v1/predict", json={"model": "churn", "users": list(range(20))}).raise_for_status().json()["answers"]
        )
        assert {answer["version"] for answer in answers} == {"churn@1"}


def test_a_watch_looks_until_it_is_stopped_and_survives_errors() -> None:
    looked = threading.Semaphore(0)

    def look() -> None:
        looked.release()
        raise ZeroDivisionError

    with Watch(look, 0.001, "nothing"):
        assert all(looked.acquire(timeout=30) for _ in range(3))


def test_the_end_of_a_watch_does_not_wait_for_a_look_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.1)
    looks, let = threading.Event(), threading.Event()

    def look() -> None:
        looks.set()
        assert let.wait(60)

    began = time.monotonic()
    with Watch(look, 0.001, "nothing"):
        assert looks.wait(30)
    assert time.monotonic() - began < 30
    let.set()


def test_a_rollback_is_one_command_and_goes_forward_again(shop: Shop) -> None:
    def zoo(*words: str) -> tuple[int, str]:
        found = CliRunner().invoke(command, ["--repo", str(shop.root), *words])
        return found.exit_code, found.output

    with registry(shop) as found, pytest.raises(RegistryError, match="only ever been churn@1"):
        found.rollback("churn")
    assert zoo("promote", "churn@2")[0] == 0
    assert zoo("promote", "churn@2")[0] == 0  # naming it again keeps the way back
    assert "churn@champion is churn@1 again; before, it was churn@2" in zoo("rollback", "churn")[1]
    assert "is churn@2 again" in zoo("rollback", "churn@champion")[1]
    assert zoo("rollback", "churn@1")[0] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[service]\nrelaod = 1", "unknown key in .service. 'relaod'"),
        ("[service]\nreload = 'often'", "reload is 'often'"),
        ("[service]\nreload = -1", "reload is -1"),
        ("[service]\nread_timeout = 'long'", "read_timeout is 'long'"),
        ("[service]\nread_timeout = nan", "read_timeout is nan; expected seconds, 0 for any time"),
        ("[service]\nreload = inf", "reload is inf; expected seconds between looks"),
        ("[service]\nin_flight = 0", "in_flight is 0; expected a whole number of requests from 1 to"),
        ("[service]\nin_flight = 1.5", "in_flight is 1.5"),
        ("[service]\nin_flight = true", "in_flight is True"),
        ("[service]\naccess_log = 1", "access_log is 1; expected true or false"),
        ("[service.canary]\nchrun = 0.1", "unknown key in .service.canary. 'chrun'"),
        ("[tasks.churn]\nmembers = ['gbdt']\n[service.canary]\nchurn = 1", "churn is 1; expected a share"),
        ("[tasks.churn]\nmembers = ['gbdt']\n[service.canary]\nchurn = 'some'", "churn is 'some'; expected a share"),
        ("[tasks.churn]\nmembers = ['gbdt']\n[service.shadow]\nchurn = 1.5", "churn is 1.5; expected a share"),
        ("[service.auth]\nkey = 'x'", "unknown key in .service.auth. 'key'"),
        ("[service.auth.jwt]\nissuer = 'x'", "algorithms is None"),
        ("[service.tls]\nkey = 'x'", "needs both certificate and key"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "zoo.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        Settings.of(Project.open(tmp_path))
