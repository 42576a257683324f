"""Answers with members lost or without the store: who is named, what is answered instead, how good that is, and by when."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proxy import Proxy, proxied
from shop import START, Shop
from tiny_shop import DAY, _applied, events_table, opened, random_events, repo

from zoo import fallbacks as fallback_module
from zoo import scoring
from zoo.contract import Array, Artefact, FeatureBatch, TargetKind
from zoo.deadline import Threads
from zoo.errors import FeatureError, LateError, PluginError, UsageError
from zoo.fallbacks import Fallbacks, losses
from zoo.features import Features
from zoo.manager import plugins
from zoo.policy import Policy
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.reading import Reader, Remembered
from zoo.scoring import STUCK, Scorer
from zoo.stacking import Ensemble
from zoo.testing.toy import toy
from zoo.training import train

__all__ = ["_applied", "repo"]  # fixtures
MEMBERS = ("gbdt", "gru")
USERS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def churn(trained_shop: Shop) -> Predictor:
    predictor = Predictor.load("churn", trained_shop.root)
    return replace(predictor, policy=Policy(at_least=0))


@dataclass(frozen=True)
class Faulty:
    """A member that first does something else."""

    fault: Callable[[Array], Array]
    real: Any

    def predict(self, batch: FeatureBatch) -> Array:
        return self.fault(self.real.predict(batch))

    def save(self) -> Artefact:
        return self.real.save()


def fail(_: Array) -> Array:
    raise ZeroDivisionError("a member's own mistake")


def leave(_: Array) -> Array:
    raise SystemExit(3)


LET = threading.Event()
"""Late members wait for it."""


def late(scores: Array) -> Array:
    LET.wait(60)
    return scores


def no_number(scores: Array) -> Array:
    return np.full_like(scores, np.nan)


def misshapen(scores: Array) -> Array:
    return scores[:-1]


def with_faults(predictor: Predictor, fault: Callable[[Array], Array], *names: str) -> Predictor:
    ensemble: Any = predictor.ensemble
    members = tuple(replace(m, fitted=Faulty(fault, m.fitted)) if m.name in names else m for m in ensemble.members)
    return replace(predictor, ensemble=replace(ensemble, members=members), _scorer=Scorer())


SUBSETS = [names for size in (1, 2) for names in combinations(MEMBERS, size)]


# Members


@pytest.mark.parametrize("fault", [fail, leave, late, no_number, misshapen], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_members_that_are_lost_are_named_and_the_others_answer(
    churn: Predictor, fault: Callable[[Array], Array], names: tuple[str, ...]
) -> None:
    whole = churn.predict(users=USERS).to_pylist()
    LET.clear()  # until after the answer, which therefore did not wait for them
    answer = with_faults(churn, fault, *names).predict(users=USERS, deadline=0.8)
    LET.set()
    for row, other in zip(answer.to_pylist(), whole):
        assert row["missing"] == list(names)
        for name in MEMBERS:
            assert row[name] == (None if name in names else pytest.approx(other[name], abs=1e-6))
        assert 0 < row["score"] < 1
        assert row["known"]
    assert churn.fallbacks is not None
    assert churn.fallbacks.held_out["+".join(names)]["log_loss"] > 0
    if len(names) == len(MEMBERS):
        assert np.asarray(answer["score"]) == pytest.approx(np.full(len(USERS), churn.fallbacks.usual[0]))


def test_rows_without_a_number_alone_lack_the_member(churn: Predictor) -> None:
    def second(scores: Array) -> Array:
        return np.where(np.arange(len(scores))[:, None] == 1, np.nan, scores).astype(np.float32)

    whole, answer = churn.predict(users=USERS), with_faults(churn, second, "gbdt").predict(users=USERS)
    assert answer["missing"].to_pylist() == [[], ["gbdt"], [], []]
    same = np.asarray(answer["score"]) == np.asarray(whole["score"])
    assert same.tolist() == [True, False, True, True]


def test_a_final_model_of_the_others_answers_a_single_loss(churn: Predictor) -> None:
    answer = with_faults(churn, fail, "gru").predict(users=USERS)
    assert churn.fallbacks is not None
    final = churn.fallbacks.without["gru"]
    assert {*churn.fallbacks.calibrators} == {"gbdt", "gru"}  # the whole stack's is of other scores
    own = churn.fallbacks.calibrators["gru"]
    alone = replace(churn.ensemble, members=churn.ensemble.members[:1], final=final, calibrator=own)
    batch = churn.features.online("churn", {"user_id": USERS})
    assert np.array_equal(np.asarray(answer["score"]), alone.predict(batch)[:, 0])


def test_a_required_member_or_too_few_of_them_are_an_error(churn: Predictor) -> None:
    needs = replace(churn, policy=Policy(required=("gru",)))
    assert with_faults(needs, fail, "gbdt").predict(users=[1])["missing"].to_pylist() == [["gbdt"]]
    with pytest.raises(PluginError, match=r"gru failed; churn@1 answers with at least 1 .*required = \['gru'\]"):
        with_faults(needs, fail, "gru").predict(users=[1])
    LET.clear()
    with pytest.raises(LateError, match="gru was late"):
        with_faults(needs, late, "gru").predict(users=[1], deadline=0.5)
    LET.set()
    with pytest.raises(PluginError, match="gbdt failed; churn@1 answers with at least 2 of its members"):
        with_faults(replace(churn, policy=Policy(at_least=2)), fail, "gbdt").predict(users=[1])


def test_a_version_from_before_fallbacks_requires_every_member(churn: Predictor) -> None:
    with pytest.raises(PluginError, match=r"gbdt failed; .*every member is required"):
        with_faults(replace(churn, fallbacks=None), fail, "gbdt").predict(users=[1])


def test_a_member_that_hangs_is_asked_again_only_when_its_calls_end(churn: Predictor) -> None:
    asked, ended = threading.Semaphore(0), threading.Semaphore(0)

    def hang(scores: Array) -> Array:
        asked.release()
        LET.wait(60)
        ended.release()
        return scores

    hanging = with_faults(churn, hang, "gru")
    LET.clear()
    for _ in range(STUCK):
        assert hanging.predict(users=[1], deadline=0.5)["missing"].to_pylist() == [["gru"]]
        assert asked.acquire(timeout=30)
    assert hanging.predict(users=[1], deadline=30)["missing"].to_pylist() == [["gru"]]  # at once
    assert not asked.acquire(blocking=False)
    LET.set()
    for _ in range(STUCK):
        assert ended.acquire(timeout=30)
    while hanging._scorer._stuck["gru"]:
        time.sleep(0.01)
    assert hanging.predict(users=[1], deadline=30)["missing"].to_pylist() == [[]]


def test_a_member_that_hangs_in_many_requests_at_once_takes_no_other_members_threads(
    churn: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "EACH", STUCK)

    def hang(scores: Array) -> Array:
        LET.wait(60)
        return scores

    hanging = with_faults(churn, hang, "gru")
    scorer, ensemble = Scorer(Threads(most=STUCK)), hanging.ensemble
    assert isinstance(ensemble, Ensemble)
    batch = churn.features.online("churn", {"user_id": [1]})
    LET.clear()
    with ThreadPoolExecutor(STUCK) as pool:
        list(pool.map(lambda _: scorer.ask(ensemble, batch, time.monotonic() + 0.5), range(STUCK)))
    assert scorer.ask(ensemble, batch, time.monotonic() + 30).why == {"gru": "late"}
    LET.set()


def test_too_many_scores_of_rows_that_are_alike_are_no_answer(churn: Predictor) -> None:
    def twice(scores: Array) -> Array:
        return np.concatenate([scores, scores])

    assert with_faults(churn, twice, "gru").predict(users=[1, 1, 2])["missing"].to_pylist() == [["gru"]] * 3


def test_locks_that_are_held_while_a_process_forks_are_free_in_its_child() -> None:
    pool, scorer, remembered = Threads(), Scorer(), Remembered()
    assert pool.submit(lambda: 1).result(30) == 1
    with pool._lock, scorer._lock, remembered._lock:
        child = os.fork()
        if child == 0:
            free = [each.acquire(blocking=False) for each in (pool._lock, scorer._lock, remembered._lock)]
            pool._lock.release()
            os._exit(0 if all(free) and pool.submit(lambda: 2).result(30) == 2 else 1)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 0


def test_a_deadline_changes_no_answer(churn: Predictor) -> None:
    found, expected = churn.predict(users=USERS, deadline=30), churn.predict(users=USERS)
    assert found.drop_columns("id").equals(expected.drop_columns("id"))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda user: churn.predict(users=[user], deadline=30), USERS * 4))
    assert [answer["missing"].to_pylist() for answer in answers] == [[[]]] * len(answers)


@pytest.mark.parametrize("deadline", [0, -1.0, True, "1"])
def test_a_deadline_that_is_no_time_is_refused(churn: Predictor, deadline: Any) -> None:
    with pytest.raises(UsageError, match="expected seconds from now, more than 0"):
        churn.predict(users=[1], deadline=deadline)


def test_rows_that_are_alike_to_a_member_are_asked_about_once(churn: Predictor) -> None:
    asked = []

    def count(scores: Array) -> Array:
        asked.append(len(scores))
        return scores

    counted, users = with_faults(churn, count, "gru"), [3, 1, 3, 2, 1, 3]
    answer = counted.predict(users=users).to_pylist()
    assert asked == [3]
    alone = {row["user_id"]: row["score"] for row in churn.predict(users=[1, 2, 3]).to_pylist()}
    assert [row["user_id"] for row in answer] == users
    assert [row["score"] for row in answer] == pytest.approx([alone[user] for user in users], abs=1e-6)


def test_threads_without_work_end_and_others_begin() -> None:
    pool = Threads(idle=0.01)
    assert [pool.submit(partial(int, n)).result(30) for n in range(20)] == list(range(20))
    while pool._threads:
        time.sleep(0.01)
    assert pool._free == 0
    gate = threading.Event()
    held = [pool.submit(gate.wait) for _ in range(5)]
    assert pool.submit(lambda: "at once").result(30) == "at once"
    gate.set()
    assert all(future.result(30) for future in held)


@pytest.mark.parametrize("most", [1, 2])
def test_threads_that_were_all_busy_end_and_others_begin(most: int) -> None:
    pool = Threads(most=most, idle=0.01)
    for _ in range(3):
        gate = threading.Event()
        held = [pool.submit(gate.wait) for _ in range(most + 3)]  # more than there are threads
        gate.set()
        assert all(future.result(30) for future in held)
        while pool._threads:
            time.sleep(0.01)
        assert pool._free == 0
    assert pool.submit(lambda: "at once").result(30) == "at once"


def test_a_thread_that_cannot_be_begun_takes_no_place(no_thread_once: None) -> None:
    pool = Threads(most=1)
    with pytest.raises(RuntimeError, match="start new thread"):
        pool.submit(lambda: 1)
    assert pool.submit(lambda: 2).result(30) == 2


# What is kept for it


def test_every_combination_of_losses_is_judged_on_the_test_rows(churn: Predictor) -> None:
    fallbacks = churn.fallbacks
    assert fallbacks is not None
    assert list(fallbacks.held_out) == ["", "gbdt", "gru", "gbdt+gru"]
    assert churn.version.metrics["held_out"] == fallbacks.held_out
    loss = {name: each["log_loss"] for name, each in fallbacks.held_out.items()}
    assert loss[""] == pytest.approx(churn.version.metrics["stack"]["log_loss"], abs=1e-6)
    assert all(np.isfinite(list(loss.values())))
    assert churn.version.metrics["base_rate"] - fallbacks.usual[0] == pytest.approx(-fallbacks.held_out["gbdt+gru"]["bias"][0])


def test_an_answer_says_whether_its_members_were_calibrated_within_the_bound(churn: Predictor) -> None:
    fallbacks = churn.fallbacks
    assert fallbacks is not None
    assert churn.policy.calibration_error == 0.05
    errors = {name: each["ece"] for name, each in fallbacks.held_out.items()}
    assert errors["gbdt+gru"] == pytest.approx(abs(fallbacks.held_out["gbdt+gru"]["bias"][0]))  # of one answer to all
    told = {**fallbacks.held_out, "": {"ece": 0.01}, "gbdt": {"ece": 0.06}, "gru": {"ece": 0.05}, "gbdt+gru": {"log_loss": 0.5}}
    own = replace(churn, fallbacks=replace(fallbacks, held_out=told))
    assert own.predict(users=[1, 2])["calibrated"].to_pylist() == [True, True]
    for name, expected in (("gbdt", False), ("gru", True)):
        assert with_faults(own, fail, name).predict(users=[1])["calibrated"].to_pylist() == [expected]
    assert with_faults(own, fail, *MEMBERS).predict(users=[1])["calibrated"].to_pylist() == [None]
    wider = replace(own, policy=Policy(calibration_error=0.06))
    assert with_faults(wider, fail, "gbdt").predict(users=[1])["calibrated"].to_pylist() == [True]

    def second(scores: Array) -> Array:
        return np.where(np.arange(len(scores))[:, None] == 1, np.nan, scores).astype(np.float32)

    assert with_faults(own, second, "gbdt").predict(users=USERS)["calibrated"].to_pylist() == [True, False, True, True]
    assert replace(churn, fallbacks=None).predict(users=[1])["calibrated"].to_pylist() == [None]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "value"])
def test_the_calibration_error_of_an_answer_is_that_of_probabilities(kind: TargetKind) -> None:
    rng = np.random.default_rng(0)
    test = toy(4_000, 0, kind)
    p = rng.uniform(0.2, 0.8, (len(test), 1)) if kind != "multiclass" else rng.dirichlet(np.ones(test.kind.width), len(test))
    drawn = rng.random(len(test))
    target = (drawn < p[:, 0]) if kind != "multiclass" else (drawn[:, None] > p.cumsum(axis=1)).sum(axis=1)
    right = fallback_module._judged(p, replace(test, target=target.astype(np.float64)))
    if kind == "value":
        assert right.keys() == {"mean_squared_error", "bias"}
        return
    assert right["ece"] < 0.04
    bold = p**4 / (p**4).sum(axis=1, keepdims=True) if kind == "multiclass" else np.clip(p + 0.2, 0, 1)
    assert fallback_module._judged(bold, replace(test, target=target.astype(np.float64)))["ece"] > 0.1


def test_fallbacks_are_what_was_saved(churn: Predictor) -> None:
    assert churn.fallbacks is not None
    again = Fallbacks.load(churn.fallbacks.save(), churn.found)
    assert again is not None
    assert again.save().texts == churn.fallbacks.save().texts
    assert Fallbacks.load(Artefact(), churn.found) is None


def test_imputed_scores_are_the_conditional_mean() -> None:
    """Of three members whose logits are jointly normal, the third is what a regression on the two others says."""
    rng = np.random.default_rng(0)
    logits = rng.multivariate_normal([0.5, -0.5, 0.2], [[1, 0.6, 0.5], [0.6, 1, 0.4], [0.5, 0.4, 1]], 20_000)
    spread = np.cov(logits, rowvar=False)
    fallbacks = Fallbacks({}, logits.mean(axis=0), spread, np.array([0.5]))
    scores = (1 / (1 + np.exp(-logits)))[:, :, None]
    lost = np.array([False, False, True])
    found = fallbacks.imputed(np.where(lost[:, None], np.nan, scores), lost, "binary")[:, 2, 0]
    others = np.column_stack([np.ones(len(logits)), logits[:, :2]])
    expected = others @ np.linalg.lstsq(others, logits[:, 2], rcond=None)[0]
    assert np.allclose(np.log(found / (1 - found)), expected, atol=1e-3)


def test_imputed_classes_sum_to_one() -> None:
    scores = np.random.default_rng(0).dirichlet([1, 2, 3], (50, 2)).astype(np.float32)
    logits = np.log(scores).reshape(50, -1).astype(np.float64)
    fallbacks = Fallbacks({}, logits.mean(axis=0), np.cov(logits, rowvar=False) + 1e-3 * np.eye(6), np.ones(3) / 3)
    found = fallbacks.imputed(scores, np.array([True, False]), "multiclass")
    assert np.allclose(found.sum(axis=2), 1, atol=1e-6)
    assert np.array_equal(found[:, 1], scores[:, 1])


def test_losses_of_many_members_are_a_choice_of_all() -> None:
    assert len(list(losses(3))) == 8
    sizes = [sum(lost) for lost in losses(8)]
    assert sizes.count(1), sizes.count(2) == (8, 28)
    assert sizes[-1] == 8


# The declaration


def test_the_policy_of_a_task_is_kept_in_its_versions(trained_shop: Shop, tmp_path: Path) -> None:
    root = trained_shop.copy(tmp_path / "shop").root
    text = (root / "zoo.toml").read_text()
    serving = '[tasks.churn.serving]\nrequired = ["gbdt"]\nat_least = 2\nstore = "last_known"\nlast_known_for = "10m"\n'
    serving += "calibration_error = 0.1\n"
    (root / "zoo.toml").write_text(text + serving)
    policy = Project.open(root).task("churn").serving
    assert policy == Policy(("gbdt",), 2, "last_known", 600.0, 0.1)
    assert Policy.kept(policy.facts()) == policy
    before = {name: value for name, value in policy.facts().items() if name != "calibration_error"}
    assert Policy.kept(before).calibration_error == 0.05
    with pytest.raises(UsageError, match="requires gbdt, which this run would not train"):
        train(Project.open(root), "churn", plugins=plugins(), members=["gru"])
    loaded = Predictor.load("churn", root)
    assert loaded.policy == Policy()  # the version has what was declared when it was trained
    assert loaded.version.lineage["serving"] == Policy().facts()


def test_a_policy_that_was_changed_after_training_is_said_not_to_count(
    trained_shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from test_service import running
    from typer.testing import CliRunner

    from zoo.cli.app import app as command
    from zoo.service import app

    root = trained_shop.copy(tmp_path / "shop").root
    assert Predictor.load("churn", root).declared == {}
    assert not caplog.records
    with (root / "zoo.toml").open("a") as file:
        file.write('\n[tasks.churn.serving]\nstore = "cold"\nat_least = 1\n')
    loaded = Predictor.load("churn", root)
    assert (loaded.policy.store, loaded.declared) == ("refuse", {"store": "cold"})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "churn@1 answers by the policy that it was trained with" in said
    assert "store = 'cold' (the version's: 'refuse')" in said
    assert said.endswith("zoo train churn")
    shown = CliRunner().invoke(command, ["--repo", str(root), "models"], env={"COLUMNS": "200"})
    told = "churn@1 answers by the policy of its training; store = 'cold' in zoo.toml counts from the next"
    assert told in " ".join(shown.output.split())
    with running(app({"churn": loaded}, loaded.features)) as client:
        (card,) = client.get("/v1/models").raise_for_status().json()["models"]
    assert (card["policy"]["store"], card["declared"]) == ("refuse", {"store": "cold"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('required = ["lstm"]', "unknown member in .*tasks.churn.serving.* required 'lstm'; choose one of: gbdt, gru"),
        ('required = "gbdt"', "expected a list of members"),
        ("at_least = 3", "at_least is 3; expected a number of members, 0 to 2"),
        ('store = "guess"', "unknown store 'guess'; choose one of: cold, last_known, refuse"),
        ("calibration_error = 2", "calibration_error is 2; expected a difference of probabilities, as in 0.05"),
        ("calibration_error = true", "calibration_error is True; expected a difference"),
        ('last_known_for = "soon"', "last_known_for is 'soon'; expected a duration"),
        ("timeout = 3", "unknown key in .*'timeout'; choose one of"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "zoo.toml").write_text(f'[tasks.churn]\nmembers = ["gbdt", "gru"]\n[tasks.churn.serving]\n{line}\n')
    with pytest.raises(UsageError, match=message):
        Project.open(tmp_path)


# The store


@dataclass(frozen=True)
class Store:
    """Features of a small shop in Redis, reached through a proxy; ``drop`` empties it."""

    features: Features
    proxy: Proxy
    flush: Callable[[], Any]

    def reader(self, policy: Policy) -> Reader:
        return Reader(self.features, "users", {}, policy, Threads())


@pytest.fixture
def store(repo: Path, redis_url: str) -> Any:
    import redis

    with proxied(redis_url) as proxy, redis.Redis.from_url(redis_url) as client:
        features = opened(repo, online=f"redis://127.0.0.1:{proxy.port}/0")
        features.append(events_table(random_events(np.random.default_rng(0), 200)))
        features.materialize()
        yield Store(features, proxy, client.flushdb)


ROWS = {"user_id": [1, 2, 77]}


def test_reads_that_hang_keep_no_answer_without_the_store(store: Store) -> None:
    cold = replace(store.reader(Policy(store="cold")), threads=Threads(most=2))
    gate = threading.Event()
    held = [cold.threads.submit(gate.wait) for _ in range(2)]
    assert set(cold.read(ROWS, None, time.monotonic() + 10).source) == {"cold"}
    gate.set()
    assert all(future.result(30) for future in held)


def test_a_store_that_holds_its_replies_back_is_not_waited_for(store: Store) -> None:
    refuses, cold = store.reader(Policy()), store.reader(Policy(store="cold"))
    assert set(refuses.read(ROWS, None, time.monotonic() + 10).source) == {"fresh"}
    store.proxy.flowing.clear()
    with pytest.raises((LateError, FeatureError)):
        refuses.read(ROWS, None, time.monotonic() + 0.2)
    read = cold.read(ROWS, None, time.monotonic() + 2)
    assert set(read.source) == {"cold"}
    assert (read.batch.newest == -1).all()
    store.proxy.flowing.set()
    assert set(cold.read(ROWS, None, time.monotonic() + 10).source) == {"fresh"}


def test_what_was_read_last_is_known_for_a_while(store: Store) -> None:
    reader = store.reader(Policy(store="last_known"))
    fresh = reader.read({"user_id": [1, 2]}, None)
    at = int(fresh.batch.as_of[0])
    store.proxy.close()
    read = reader.read({"user_id": [2, 3, 1]}, at + DAY)
    assert read.source.tolist() == ["last_known", "cold", "last_known"]
    assert read.batch.newest.tolist() == [fresh.batch.newest[1], -1, fresh.batch.newest[0]]
    assert read.batch.as_of.tolist() == [at + DAY] * 3  # known events, and the age that they have by now
    older = replace(reader, policy=Policy(store="last_known", last_known_for=1e-9))
    assert set(older.read({"user_id": [1]}, None).source) == {"cold"}
    with pytest.raises(FeatureError, match=r"Redis at .* does not answer"):
        store.reader(Policy()).read(ROWS, None)


def test_a_store_that_lost_everything_is_filled_from_the_log_before_it_answers(store: Store) -> None:
    reader = store.reader(Policy(store="cold"))
    before = reader.read(ROWS, None)
    store.flush()
    again = reader.read(ROWS, None, time.monotonic() + 30)
    assert again.batch.newest.tolist() == before.batch.newest.tolist()
    assert set(again.source) == {"fresh"}


def test_what_is_remembered_is_bounded_and_dropped_with_what_is_forgotten(store: Store) -> None:
    few = Remembered(size=1_000)
    reader = replace(store.reader(Policy(store="last_known")), remembered=few)
    for user in range(1, 6):
        reader.read({"user_id": [user]}, None)
    assert few._bytes <= 1_000
    reader = store.reader(Policy(store="last_known"))
    reader.read({"user_id": [1, 2]}, None)
    store.features.forget([1])
    store.proxy.close()
    assert set(reader.read({"user_id": [1, 2]}, None).source) == {"cold"}


def test_an_answer_without_the_store_says_so_and_claims_to_know_nobody(churn: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = replace(churn, policy=Policy(store="cold"), _scorer=Scorer())
    before = churn.predict(users=[999_999]).to_pylist()[0]

    def down(*_: Any, **__: Any) -> Any:
        raise FeatureError("the store is down")

    monkeypatch.setattr(Features, "online", down)
    row = cold.predict(users=[1], deadline=10).to_pylist()[0]
    assert (row["known"], row["features"], row["newest_event_age"]) == (None, "cold", None)
    assert row["calibrated"] is None  # which was measured with fresh ones
    assert row["score"] == pytest.approx(before["score"], abs=1e-6)
    (explained,) = cold.explain(users=[1], deadline=30, events=0)
    assert explained.as_dict()["source"] == "cold"
    assert explained.score == pytest.approx(row["score"], abs=1e-6)
    with pytest.raises(FeatureError, match="the store is down"):
        replace(churn, _scorer=Scorer()).predict(users=[1], at=START)
