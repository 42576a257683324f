"""Explanations add up to the score that they explain, and say what is known to have moved it."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop import Shop

from zoo.cli import app as application
from zoo.contract import Array, Artefact, Column, Contributions, FeatureBatch, Target, TrainingData
from zoo.errors import LateError, UsageError
from zoo.explaining import EXACT, Explanation, account, columns_of, explain, importance, rates, shapley
from zoo.fitting import Averaged, Member
from zoo.manager import plugins
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.stacking import Ensemble, Fitted, fit_members
from zoo.training import train
from zoo.vocabulary import Vocabulary

HALF = np.array([0.5])


def odds(p: Any) -> Any:
    return np.log(p) - np.log1p(-p)


def probability(eta: Array) -> Array:
    found: Array = (1 / (1 + np.exp(-eta)))[:, None].astype(np.float32)
    return found


@dataclass(frozen=True)
class Spender:
    """Log-odds: ``weight`` times the sum of a row's spent amounts, and its age where known."""

    weight: float = 1.0

    def predict(self, batch: FeatureBatch) -> Array:
        spent, age = batch.column("spent"), batch.column("age").values
        sums = np.bincount(np.repeat(np.arange(len(batch)), spent.lengths), spent.values, minlength=len(batch))
        return probability(self.weight * sums + np.nan_to_num(age))

    def save(self) -> Artefact:
        return Artefact()


@dataclass(frozen=True)
class Final:
    """Log-odds: a sum over the members' log-odds, and, with ``both``, their product."""

    weights: tuple[float, ...]
    both: float = 0.0

    def predict(self, batch: FeatureBatch) -> Array:
        logits = [odds(batch.column(name).values) for name in batch.names if name.startswith("score:")]
        return probability(np.stack(logits, axis=1) @ np.array(self.weights) + self.both * np.prod(logits, axis=0))

    def save(self) -> Artefact:
        return Artefact()


def fitted(name: str, model: Any, inputs: tuple[str, ...] = ("*",)) -> Fitted:
    return Fitted(name, name, inputs, "none", "0", math.nan, model)


def ensemble(*weights: float, both: float = 0.0) -> Ensemble:
    """Members whose log-odds are 1, 2, ... times what their rows spent, and a final model over them."""
    members = tuple(fitted(f"m{at}", Spender(float(at))) for at, _ in enumerate(weights, 1))
    return Ensemble(members, fitted("final", Final(weights, both), ("score:*",)), Vocabulary({}), Target("binary"))


def batch(*spent: list[float], age: list[float] | None = None) -> FeatureBatch:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in spent])]).astype(np.int64)
    values = np.array([value for row in spent for value in row], np.float64)
    n = len(spent)
    block = {"spent": Column(values, offsets), "age": Column(np.array(age or [0.0] * n)), "shop": Column(np.zeros(n))}
    return FeatureBatch({"user": block}, {"user": np.arange(n, dtype=np.int32)}, np.full(n, 10), np.full(n, 9))


# Members


def test_members_of_a_linear_final_model_move_it_by_weight_times_log_odds() -> None:
    of, rows = ensemble(0.5, 0.25), batch([1.0, -0.5], [2.0])
    scores = of.member_scores(rows)
    base, moved = shapley(of, rows, scores, np.array([0.2]))
    silent = odds(0.2)
    np.testing.assert_allclose(base[:, 0], [0.75 * silent] * 2, atol=1e-5)
    np.testing.assert_allclose(moved[:, 0, 0], [0.5 * (0.5 - silent), 0.5 * (2 - silent)], atol=1e-4)
    np.testing.assert_allclose(moved[:, 1, 0], [0.25 * (1.0 - silent), 0.25 * (4 - silent)], atol=1e-4)
    np.testing.assert_allclose(base + moved.sum(axis=1), odds(of.combine(rows, scores).astype(np.float64)), atol=1e-6)


def test_members_that_act_together_share_as_the_mean_over_all_orders_says() -> None:
    of, rows = ensemble(0.5, 0.3, 0.1, both=0.4), batch([0.4])
    scores = of.member_scores(rows)

    def value(inside: set[int]) -> float:
        given = np.array([[[scores[0, at, 0] if at in inside else 0.5] for at in range(3)]], np.float32)
        return float(odds(float(of.combine(rows, given)[0, 0])))

    expected = np.zeros(3)
    for order in permutations(range(3)):
        for place, at in enumerate(order):
            expected[at] += (value(set(order[: place + 1])) - value(set(order[:place]))) / 6
    base, moved = shapley(of, rows, scores, HALF)
    np.testing.assert_allclose(moved[0, :, 0], expected, atol=1e-6)
    assert base[0, 0] == pytest.approx(0.0)


def test_many_members_still_sum_to_the_score() -> None:
    of, rows = ensemble(*[0.01] * (EXACT + 1), both=1e-9), batch([0.3], [0.7])
    scores = of.member_scores(rows)
    base, moved = shapley(of, rows, scores, HALF)
    np.testing.assert_allclose(base + moved.sum(axis=1), odds(of.combine(rows, scores).astype(np.float64)), atol=1e-6)


# Columns and events


def test_columns_of_a_model_that_says_nothing_are_left_out_one_at_a_time() -> None:
    [one] = explain(ensemble(1.0), batch([0.25, 0.5], age=[-0.125]), HALF)
    assert one.units == one.as_dict()["units"] == "log-odds"
    assert one.how == {"m1": "leaving out one column at a time"}
    assert dict(one.features["m1"]) == {"spent": pytest.approx(0.75, abs=1e-5), "age": pytest.approx(-0.125, abs=1e-5)}
    assert [column for column, _ in one.features["m1"]] == ["spent", "age"]  # the strongest first; shop moved nothing
    assert one.raw == pytest.approx(0.625, abs=1e-5)
    assert one.score == pytest.approx(1 / (1 + math.exp(-0.625)), abs=1e-6)
    assert one.output is None


@pytest.mark.parametrize("classes", [2, 3])
def test_trees_for_several_classes_are_told_in_scores_before_the_softmax(classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    block = {"x": Column(x), "noise": Column(rng.normal(size=300))}
    rows = FeatureBatch({"user": block}, {"user": np.arange(300, dtype=np.int32)}, np.arange(300), np.arange(300) - 1)
    kind = Target("binary") if classes == 2 else Target("multiclass", ("a", "b", "c"))
    target = np.digitize(x + rng.normal(size=300), [0] if classes == 2 else [-0.5, 0.5]).astype(np.float64)
    params = {"num_trees": 10, "num_threads": 1, "min_data_in_leaf": 5, "feature_fraction": 1.0}
    [trees] = fit_members([Member("gbdt", "gbdt", params)], TrainingData(rows, target, np.ones(300), np.arange(300), kind))
    how, names, values = columns_of(trees, rows, kind)
    said = account(trees.fitted, rows)
    assert said is not None
    assert set(names) == {"x", "noise"}
    raw, p = said.base + values.sum(axis=2), trees.fitted.predict(rows).astype(np.float64)
    if classes == 2:
        assert how == "TreeSHAP"
        np.testing.assert_allclose(raw, np.log(p) - np.log(1 - p), atol=1e-4)
    else:
        assert how == "TreeSHAP, of scores before the softmax"
        np.testing.assert_allclose(raw - raw[:, :1], np.log(p) - np.log(p[:, :1]), atol=1e-4)
        assert np.abs(raw - (np.log(p) - np.log(1 - p))).max() > 0.1  # no log-odds


def test_events_are_left_out_one_at_a_time_for_the_stack_and_each_member() -> None:
    rows = batch([0.25, 0.5], [], [1.0, 0.0])
    first, second, third = explain(ensemble(0.5, 0.5), rows, HALF, sequences=[("spent",)])
    assert [(e["back"], e["event"]) for e in first.events] == [(0, {"spent": 0.5}), (1, {"spent": 0.25})]
    for event, amount in zip(first.events, (0.5, 0.25), strict=True):
        assert event["moved"] == {name: pytest.approx(w * amount, abs=1e-5) for name, w in (("stack", 1.5), ("m1", 1), ("m2", 2))}
    assert second.events == []
    assert [e["back"] for e in third.events] == [1]  # an event that moves nothing is not listed
    assert explain(ensemble(1.0), rows, HALF, sequences=[("spent",)], events=1)[0].events[-1]["back"] == 0


def test_aligned_sequences_lose_the_same_event_and_codes_are_said_by_their_text() -> None:
    rows = batch([0.25, 0.5])
    block = {**rows.blocks["user"], "items": Column(np.array([2, 3], np.int32), np.array([0, 2]), "item_id")}
    names = {"item_id": np.array(["", "", "tea", "milk"], object)}
    rows = replace(rows, blocks={"user": block}, catalogue=replace(rows.catalogue, names=names))
    [one] = explain(ensemble(1.0), rows, HALF, sequences=[("items", "spent"), ("lost",)])
    assert [e["event"] for e in one.events] == [{"items": "milk", "spent": 0.5}, {"items": "tea", "spent": 0.25}]
    assert {e["sequence"] for e in one.events} == {"items"}


def test_an_amount_that_json_has_no_number_for_is_said_as_none() -> None:
    rows = batch([0.25, 0.5])
    block = {**rows.blocks["user"], "price": Column(np.array([np.inf, 9.5]), np.array([0, 2]))}
    [one] = explain(ensemble(1.0), replace(rows, blocks={"user": block}), HALF, sequences=[("spent", "price")])
    assert [e["event"] for e in one.events] == [{"spent": 0.5, "price": 9.5}, {"spent": 0.25, "price": None}]
    json.dumps(one.as_dict(), allow_nan=False)


def test_values_are_explained_in_their_own_units() -> None:
    [one] = explain(replace(ensemble(1.0), target=Target("value")), batch([0.25]), HALF)
    assert (one.units, one.raw) == ("value", one.score)


def test_importance_is_the_mean_absolute_move() -> None:
    of, rows = ensemble(0.5, 0.25), batch([1.0], [-1.0], [2.0])
    found = importance(of, rows, HALF)
    assert found["members"] == {"m1": pytest.approx(0.5 * 4 / 3, abs=1e-4), "m2": pytest.approx(0.5 * 4 / 3, abs=1e-4)}
    assert found["features"]["m2"]["columns"] == {"spent": pytest.approx(8 / 3, abs=1e-4)}
    assert found["features"]["m2"]["rows"] == 3
    assert found["units"] == "log-odds"
    assert importance(of, rows.take(np.zeros(0, np.int64)), HALF)["members"] == {"m1": 0.0, "m2": 0.0}


def test_base_rates_come_from_the_record() -> None:
    assert rates({"base_rate": 0.3}, Target("binary")).tolist() == [0.3]
    assert rates({}, Target("binary")).tolist() == [0.5]
    classes = Target("multiclass", ("a", "b"))
    assert rates({"classes": {"b": 0.75, "a": 0.25}}, classes).tolist() == [0.25, 0.75]
    assert rates({}, classes).tolist() == [0.5, 0.5]


# A trained project


@pytest.fixture(scope="module")
def predictor(trained_shop: Shop) -> Predictor:
    return Predictor.load("churn", trained_shop.root)


@pytest.fixture(scope="module")
def explained(predictor: Predictor) -> list[Explanation]:
    return predictor.explain(users=[1, 2, 999_999], top=5, events=3)


def test_a_predictors_explanations_are_of_its_own_scores(predictor: Predictor, explained: list[Explanation]) -> None:
    answer = predictor.predict(users=[1, 2, 999_999])
    np.testing.assert_allclose([each.score for each in explained], answer["score"].to_numpy())
    for each in explained:
        assert each.base + sum(each.members.values()) == pytest.approx(each.raw, abs=1e-6)
        assert each.raw == pytest.approx(odds(each.score), abs=1e-6)
        assert set(each.members) == {"gbdt", "gru"}
        assert all(len(columns) <= 5 for columns in each.features.values())
        assert each.how == {"gbdt": "TreeSHAP", "gru": "leaving out one column at a time"}
    assert explained[0].base == explained[1].base
    assert explained[2].events == []  # nobody knows this user


def test_an_explanation_says_whether_the_user_is_known(predictor: Predictor, explained: list[Explanation]) -> None:
    assert (
        [each.known for each in explained] == predictor.predict(users=[1, 2, 999_999])["known"].to_pylist() == [True, True, False]
    )


def test_contributions_of_trees_sum_to_their_score(predictor: Predictor) -> None:
    [one] = predictor.explain(users=[1], top=1_000)
    gbdt = predictor.ensemble.members[0].fitted
    batch = predictor.features.online(predictor.service, {"user_id": [1]})
    assert isinstance(predictor.ensemble, Ensemble)
    said = gbdt.explain(predictor.ensemble.vocabulary.apply(batch))  # type: ignore[attr-defined]
    raw = float(said.base[0, 0]) + sum(moved for _, moved in one.features["gbdt"])
    assert raw == pytest.approx(odds(float(predictor.predict(users=[1])["gbdt"][0].as_py())), abs=1e-5)


def test_an_event_that_is_left_out_is_one_that_the_user_had(predictor: Predictor, explained: list[Explanation]) -> None:
    [newest] = [e for e in explained[0].events if e["back"] == 0]
    assert newest["sequence"] == "items"
    batch = predictor.features.online(predictor.service, {"user_id": [1]})
    assert newest["event"]["ages"] == batch.column("ages").values[-1]
    assert newest["event"]["categories"] in ("bread", "fruit", "garden", "toys")
    assert newest["moved"]["gru"]


def test_rows_with_more_keys_than_the_user_are_explained_too(trained_shop: Shop) -> None:
    predictor = Predictor.load("campaign", trained_shop.root)
    rows = {"user_id": [1, 2], "campaign_id": [3, 4]}
    found = predictor.explain(rows)
    assert [each.score for each in found] == pytest.approx(predictor.predict(rows)["score"].to_pylist())
    for each in found:
        assert each.base + sum(each.members.values()) == pytest.approx(each.raw, abs=1e-6)
        assert each.events == []  # the service has no sequence
    assert predictor.explain({"user_id": [], "campaign_id": []}) == []


def test_a_deadline_bounds_all_of_an_explanation(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_degradation import with_faults

    steps = []

    def slow(scores: Array) -> Array:
        steps.append(len(scores))
        time.sleep(0.3)
        return scores

    slowed = with_faults(predictor, slow, "gru")
    with pytest.raises(LateError, match="the explanation was not there by the deadline"):
        slowed.explain(users=[1], deadline=0.8)
    assert len(steps) <= 4  # of some thirty
    assert predictor.explain(users=[1], events=1, deadline=60)


def test_what_cannot_be_explained_is_said(predictor: Predictor, trained_shop: Shop) -> None:
    odd: list[dict[str, Any]] = [{"top": -1}, {"events": 1.5}]
    for named in odd:
        with pytest.raises(UsageError, match="expected how many to tell, 0 or more"):
            predictor.explain(users=[1], **named)
    with pytest.raises(UsageError, match="unknown output 'yes'"):
        predictor.explain(users=[1], output="yes")
    with pytest.raises(UsageError, match="rows have no column 'campaign_id'"):
        Predictor.load("campaign", trained_shop.root).explain(users=[1])


def test_the_command_says_members_columns_and_events(
    trained_shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        application.app(["--repo", str(trained_shop.root), "explain", "churn", "--user", "1", "--top", "2", "--events", "2"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "user_id 1: score 0." in said
    assert "Columns of gbdt, by TreeSHAP" in said
    assert "No event of this user" not in said
    assert "Events, the newest first" in said
    assert re.search(r"gaps [0-9.]+ (days|hours|minutes|seconds)", said)  # a time, not a number of seconds
    lines = []
    for more in ([], ["--all"]):
        with pytest.raises(SystemExit):
            application.app(["--repo", str(trained_shop.root), "explain", "churn", "--user", "1", *more])
        lines.append(capsys.readouterr().out.splitlines())
    assert len(lines[0]) <= 45 < len(lines[1])
    assert "--all lists every column and event" in lines[0][-1]
    with pytest.raises(SystemExit) as ended:
        application.app(["--repo", str(trained_shop.root), "explain", "churn", "--user", "1", "--all", "--top", "3"])
    assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        application.app(["--repo", str(trained_shop.root), "explain", "churn", "--user", "999999"])
    assert "No event of this user" in capsys.readouterr().out
    drawn = tmp_path / "new" / "why.html"
    words = ["explain", "churn", "--user", "1", "--user", "2", "--top", "2", "--events", "2", "--output", str(drawn)]
    with pytest.raises(SystemExit) as ended:
        application.app(["--repo", str(trained_shop.root), *words])
    assert ended.value.code == 0
    assert f"wrote {drawn}" in capsys.readouterr().out
    text = drawn.read_text()
    plots = re.findall(r'data-plot="([a-z-]+)"', text)
    assert plots == ["moved-members", "moved-columns", "moved-columns", "moved-events"] * 2
    assert "<script" not in text
    assert re.search(r">1\. [a-z_]+ \S", text)  # columns by name, as in the terminal
    with pytest.raises(SystemExit) as ended:
        application.app(["--repo", str(trained_shop.root), "explain", "churn", "--output", str(drawn)])
    assert ended.value.code == 2
    assert "--output draws what moved single scores" in " ".join(capsys.readouterr().err.split())
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("user_id,campaign_id\n1,3\n")
    with pytest.raises(SystemExit):
        application.app(["--repo", str(trained_shop.root), "explain", "campaign", "--rows", str(pairs)])
    assert "user_id 1, campaign_id 3: score 0." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        application.app(["--repo", str(trained_shop.root), "explain", "churn", "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert set(whole["features"]) == {"gbdt", "gru"}
    assert all(each["rows"] > 0 and each["columns"] for each in whole["features"].values())


def test_classes_are_explained_for_the_likeliest_or_the_one_asked_for(trained_shop: Shop, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    more = (
        '\n[tasks.behaviour]\nmembers = ["gbdt"]\nfolds = 2\nevery = "14d"\nhorizon = "2d"\nevent_types = ["view", "purchase"]\n'
    )
    more += "[tasks.behaviour.params.gbdt]\nnum_trees = 5\nnum_threads = 1\n"
    path = copy.root / "definitions.py"
    path.write_text(path.read_text() + "behaviour = FeatureService(name='behaviour', features=[user_activity, user_sequence])\n")
    toml = copy.root / "zoo.toml"
    toml.write_text(toml.read_text() + more)
    from zoo.features import apply

    apply(copy.root)
    train(Project.open(copy.root), "behaviour", plugins=plugins())
    predictor = Predictor.load("behaviour", copy.root)
    [likeliest], [asked] = predictor.explain(users=[1]), predictor.explain(users=[1], output="purchase")
    answer = predictor.predict(users=[1]).to_pylist()[0]
    assert asked.output == "purchase"
    assert asked.score == pytest.approx(answer["score:purchase"])
    assert likeliest.score == pytest.approx(max(v for name, v in answer.items() if name.startswith("score:")))
    for each in (likeliest, asked):
        assert each.base + sum(each.members.values()) == pytest.approx(odds(each.score), abs=1e-6)


def test_training_keeps_how_the_members_parts_settle(trained_shop: Shop) -> None:
    from zoo.registry import Registry

    project = Project.open(trained_shop.root)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        churn, campaign = (registry.get(f"{task}@1").metrics["weights"] for task in ("churn", "campaign"))
    assert campaign == {}  # one member
    assert churn["rows"] == sorted(churn["rows"])
    assert len(churn["rows"]) == 2
    assert set(churn["shares"]) == {"gbdt", "gru"}
    np.testing.assert_allclose(np.sum(list(churn["shares"].values()), axis=0), [1.0, 1.0])


def test_an_average_of_models_gives_the_mean_of_their_accounts() -> None:
    @dataclass(frozen=True)
    class Telling(Spender):
        named: tuple[str, ...] = ("a",)

        def explain(self, batch: FeatureBatch) -> Contributions:
            values = np.full((len(batch), 1, len(self.named)), self.weight)
            return Contributions(self.named, values, np.full((len(batch), 1), 10 * self.weight))

    rows = batch([1.0], [2.0])
    said = account(Averaged((Telling(1.0, ("a", "b")), Telling(3.0, ("b", "c")))), rows)
    assert said is not None
    assert said.names == ("a", "b", "c")
    np.testing.assert_allclose(said.values[0, 0], [0.5, 2.0, 1.5])
    np.testing.assert_allclose(said.base, 20.0)
    assert account(Averaged((Telling(1.0), Spender())), rows) is None
