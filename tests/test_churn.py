"""Churn over several horizons, as hazards, over several origins; its baselines and the value at risk."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shop
from shop import DAY, START

from zoo.errors import UsageError
from zoo.events.view import LogView
from zoo.project import Project, TaskSettings
from zoo.tasks import btyd, churn
from zoo.training import split

SETTINGS: dict[str, Any] = {"event_type": "purchase", "active": "28d", "every": "7d"}
SEVERAL = {**SETTINGS, "horizons": ["28d", "7d", "14d"]}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> LogView:
    root = tmp_path_factory.mktemp("log")
    shop.make_log(root / "log", shop.events(seed=3, users=60, days=120))
    return LogView.open(root / "log")


def by_key(rows):
    return {
        (int(u), int(t), d): (y, int(k))
        for u, t, d, y, k in zip(rows.keys["user_id"], rows.time, rows.keys["days"], rows.target, rows.known_at)
    }


def test_each_horizon_has_the_labels_of_a_task_of_its_own(view):
    start, end = START + 30 * DAY, START + 60 * DAY
    found = by_key(churn.examples(view, SEVERAL, start, end))
    assert {days for _, _, days in found} == {7, 14, 28}
    for days in (7, 14, 28):
        alone = churn.examples(view, {**SETTINGS, "horizon": f"{days}d"}, start, end)
        expected = {(int(u), int(t), days): y for u, t, y in zip(alone.keys["user_id"], alone.time, alone.target)}
        assert {key: y for key, (y, _) in found.items() if key[2] == days} == expected
    assert all(known == time + days * DAY for (_, time, days), (_, known) in found.items())
    assert churn.contexts(SEVERAL) == {"days": "float64"}
    assert churn.contexts(SETTINGS) == {}


def test_hazards_are_asked_of_those_who_stayed_away_until_then(view):
    start, end = START + 30 * DAY, START + 60 * DAY
    whole = by_key(churn.examples(view, SEVERAL, start, end))
    found = by_key(churn.examples(view, {**SEVERAL, "hazard": True}, start, end))
    for (user, time, days), (stays, _) in found.items():
        before = {7: 1.0, 14: whole[user, time, 7][0], 28: whole[user, time, 14][0]}[days] if days > 7 else 1.0
        assert before == 1.0
        assert stays == whole[user, time, days][0]
    assert len(found) == sum(days == 7 or whole[u, t, {14: 7, 28: 14}[days]][0] == 1 for u, t, days in whole)
    np.testing.assert_allclose(churn.survival(np.array([[0.5, 0.5, 1.0]])), [[0.5, 0.25, 0.25]])


def settings(**own: Any) -> TaskSettings:
    return TaskSettings("churn", "churn", ("gbdt",), own={**SEVERAL, **own})


def test_the_gap_is_the_longest_window_and_several_origins_are_tested(view, tmp_path: Path):
    rows = split(churn.TASK, settings(origins=3), view, None, None)
    cuts = np.unique(rows.test.time)
    assert np.diff(cuts).tolist() == [7 * DAY] * 2
    assert (rows.train.known_at + 28 * DAY <= cuts[0]).all()
    assert rows.train.known_at.max() + 28 * DAY > cuts[0] - 7 * DAY
    assert (rows.test.known_at <= (view.end or 0) + 1).all()
    assert {d for c, d in zip(rows.test.time, rows.test.keys["days"]) if c == cuts[-1]} == {7, 14, 28}
    (tmp_path / "zoo.toml").write_text('[tasks.churn]\nmembers = ["gbdt"]\nactive = "28d"\nhorizon = "7d"\ngap = "21d"\n')
    read = Project.open(tmp_path).task("churn")
    assert churn.TASK.resolved(view, read.own)
    apart = split(churn.TASK, read, view, None, None)
    assert int(apart.test.time.min() - apart.train.known_at.max()) >= 21 * DAY
    named = split(churn.TASK, settings(origins=2), view, int(cuts[0]), None)
    np.testing.assert_array_equal(np.unique(named.test.time), cuts[:2])


def test_buy_till_you_die_models_are_baselines_that_know_something(view):
    rows = split(churn.TASK, settings(origins=3), view, None, None)
    assert set(rows.baselines) == {"bg_nbd", "pareto_nbd"}
    for scores in rows.baselines.values():
        assert scores.shape == (len(rows.test),)
        assert ((scores >= 0) & (scores <= 1)).all()
        at = {days: scores[rows.test.keys["days"] == days].mean() for days in (7, 14, 28)}
        assert at[7] > at[14] > at[28]
        from sklearn.metrics import roc_auc_score

        assert roc_auc_score(rows.test.target, scores) > 0.6


def test_baselines_read_no_purchase_after_their_cut(view, tmp_path: Path):
    cut = START + 70 * DAY
    columns = shop.events(seed=3, users=60, days=120)
    before = {name: values[columns["time"] < cut] for name, values in columns.items()}
    shop.make_log(tmp_path / "log", before)
    rows = churn.examples(view, SETTINGS, cut, cut + 1)
    own = churn.baselines(view, SETTINGS, rows, rows)
    cut_off = churn.baselines(LogView.open(tmp_path / "log"), SETTINGS, rows, rows)
    for name, scores in own.items():
        np.testing.assert_allclose(scores, cut_off[name], rtol=1e-9)


def test_baselines_of_hazards_multiply_to_those_of_horizons(view):
    cut = START + 70 * DAY
    rows = churn.examples(view, SEVERAL, cut, cut + 1)
    whole, step = (churn.baselines(view, {**SEVERAL, "hazard": h}, rows, rows)["bg_nbd"] for h in (False, True))
    at = [np.flatnonzero(rows.keys["days"] == days) for days in (7, 14, 28)]
    np.testing.assert_allclose(churn.survival(np.stack([step[a] for a in at], axis=1)), np.stack([whole[a] for a in at], axis=1))


def test_value_at_risk_is_what_those_who_may_leave_spend(view):
    own = {**SETTINGS, "value": "value"}
    cut = START + 70 * DAY
    rows = churn.examples(view, own, cut, cut + 1)
    told = churn.facts(view, own, rows, np.full(len(rows), 0.5))["value_at_risk"]
    events = view.events(["value"], ["purchase"])
    inside = (events.time >= cut - 28 * DAY) & (events.time < cut)
    assert told["worth"] == pytest.approx(events.columns["value"][inside].sum() / 10_000 * 14 / 28)
    assert told["expected"] == pytest.approx(told["worth"] / 2)
    perfect = churn.facts(view, own, rows, rows.target)["value_at_risk"]
    assert perfect["expected"] == pytest.approx(perfect["lost"])
    assert perfect["in_top_tenth"] >= told["in_top_tenth"]
    assert churn.facts(view, SETTINGS, rows, rows.target) == {}
    twice = rows.take(np.repeat(np.arange(len(rows)), 2))
    twice = replace(twice, time=twice.time - np.tile([0, 1], len(rows)))  # two cuts, a microsecond apart
    both = churn.facts(view, own, twice, np.full(len(twice), 0.5))["value_at_risk"]
    assert both["worth"] == pytest.approx(told["worth"])
    assert both["lost"] == pytest.approx(told["lost"])
    with pytest.raises(UsageError, match="choose one of"):
        churn.facts(view, {**own, "value": "amuont"}, rows, rows.target)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"horizons": "14d"}, r"""horizons is '14d'; expected a list such as \["14d", "28d"\]"""),
        ({"horizons": []}, r"""horizons is \[\]; expected a list such as"""),
        ({"horizons": ["7d", "0d"]}, "a duration in horizons is '0d'; expected a duration above 0, such as 14d"),
        ({"every": "0d"}, "every is '0d'; expected a duration above 0, such as 14d"),
        ({"every": 0}, "every is 0; expected a duration above 0"),
        ({"horizon": 1.5}, "horizon is 1.5; expected a duration above 0"),
        ({"active": "two weeks"}, "active is 'two weeks'; expected a duration above 0"),
        ({"origins": 0}, "origins is 0; expected a whole number of at least 1"),
        ({"origins": 1.5}, "origins is 1.5; expected a whole number of at least 1"),
        ({"origins": True}, "origins is True; expected a whole number of at least 1"),
        ({"hazard": "yes"}, "hazard is 'yes'; expected true or false"),
        ({"hazard": True, "value": "value"}, "value is 'value' with hazard = true.*leave out one of the two"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_rows_are_drawn(trained_shop, given, message):
    from zoo.manager import plugins
    from zoo.project import Project
    from zoo.training import train

    project, said = Project.open(trained_shop.root), []
    table = project.task("churn")
    broken = replace(project, tasks={"churn": replace(table, own={**table.own, **given})})
    with pytest.raises(UsageError, match=r"\[tasks.churn\] " + message):
        train(broken, "churn", plugins=plugins(), register=False, progress=lambda done, text: said.append(text))
    assert said == ["examples"]


def test_a_run_tells_horizons_apart_and_shows_the_baselines(trained_shop, tmp_path):
    from zoo.features import Features
    from zoo.manager import plugins
    from zoo.predictor import Predictor
    from zoo.project import Project
    from zoo.training import train

    copy = trained_shop.copy(tmp_path / "shop")
    project = Project.open(copy.root)
    table = project.task("churn")
    own = {name: value for name, value in table.own.items() if name != "horizon"}
    own |= {"horizons": ["14d", "28d"], "value": "value"}
    params = {**table.params["gbdt"], "learning_rate": 0.1, "feature_fraction": 1.0}
    several = replace(table, name="several", members=("gbdt",), own=own, params={"gbdt": params})
    asked = replace(project, tasks={"several": several})
    record = train(asked, "several", plugins=plugins(), features=Features.open(copy.root)).record
    assert set(record["baselines"]) == set(btyd.MODELS)
    assert set(record["days"]) == {"14", "28"}
    assert {"stack", *btyd.MODELS} == set(record["days"]["14"])
    assert record["facts"]["value_at_risk"]["horizon_days"] == 28
    rows = [{"user_id": user, "days": days} for days in (14.0, 28.0) for user in range(1, 41)]
    predictor = Predictor.load("several@1", repo=copy.root)
    near, far = np.split(np.array(predictor.predict(rows)["score"]), 2)
    assert near.mean() > far.mean()
    alone = r"not about users alone; give rows with a column 'days' \(several@1 .* with 14.0, 28.0\)"
    for asked_of in (lambda: predictor.predict(users=[1]), lambda: next(predictor.predict_batches())):
        with pytest.raises(UsageError, match=alone):
            asked_of()
    of_users = predictor.predict(predictor.rows_of([5, 999_999])).to_pylist()
    assert [(row["user_id"], row["days"]) for row in of_users] == [(5, 14), (5, 28), (999_999, 14), (999_999, 28)]
    assert [row["score"] for row in of_users[:2]] == [near[4], far[4]]

    told = zoo(copy.root, "predict", "several@1", "--user", "5", "--user", "999999", "--json")
    assert [[row[n] for n in ("user_id", "days", "score")] for row in json.loads(told)["rows"]] == [
        [row[n] for n in ("user_id", "days", "score")] for row in of_users
    ]
    text = zoo(copy.root, "predict", "several@1", "--user", "5", "--user", "999999")
    assert "28.0000" in text
    assert text.count("999999") == 3  # a row a horizon, and once as new
    moved = zoo(copy.root, "explain", "several@1", "--user", "5", "--json")
    assert [(row["days"], row["score"]) for row in json.loads(moved)["rows"]] == [(14, near[4]), (28, far[4])]


def test_training_prints_each_horizon_and_the_value_at_risk(trained_shop, tmp_path):
    root = trained_shop.copy(tmp_path / "shop").root
    settings = (root / "zoo.toml").read_text()
    (root / "zoo.toml").write_text(settings.replace('horizon = "14d"', 'horizons = ["14d", "28d"]\nvalue = "value"'))
    told = zoo(root, "train", "churn", "--member", "gbdt", "--workers", "1", "--json")
    record = json.loads(told)
    text = zoo(root, "train", "churn", "--member", "gbdt", "--workers", "1")
    _, below = text.split("the stack and the baselines by horizon")
    lines = [line.split() for line in below.splitlines()]
    for days, board in record["days"].items():
        for name, of in board.items():
            (line,) = [each for each in lines if each[:2] == [days, name]]
            assert line[2] == f"{of['auc']:.4f}"
    risk = record["facts"]["value_at_risk"]
    said = " ".join(text.split())
    assert "value at risk over 28 days, in units of the event column 'value': the users of a cut spend" in said
    assert f"the users of a cut spend {risk['worth']:,.2f}, of which" in said
    assert f"expect {risk['expected']:,.2f} to go; {risk['lost']:,.2f} did go" in said


def zoo(root: Path, *words: str) -> str:
    """What a command of this project wrote to stdout; it must end well."""
    from zoo.cli.app import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        app(["--repo", str(root), *words], prog_name="zoo")
    assert not ended.value.code, err.getvalue()
    return out.getvalue()


def test_a_run_of_hazards_gives_survival_that_falls(trained_shop, tmp_path):
    from zoo.manager import plugins
    from zoo.project import Project
    from zoo.training import train

    project = Project.open(trained_shop.copy(tmp_path / "shop").root)
    table = project.task("churn")
    own = {name: value for name, value in table.own.items() if name != "horizon"}
    own |= {"horizons": ["7d", "14d", "28d"], "hazard": True, "every": "14d"}
    hazard = replace(table, name="hazard", members=("gbdt",), own=own, params={"gbdt": {**table.params["gbdt"], "num_trees": 10}})
    done = train(replace(project, tasks={"hazard": hazard}), "hazard", plugins=plugins(), register=False)
    assert set(done.record["days"]) == {"7", "14", "28"}
    assert set(done.record["baselines"]) == set(btyd.MODELS)
    assert "facts" not in done.record or not done.record["facts"]
    rows, stack = done.rows, done.scores["stack"][:, 0]
    users = np.intersect1d(*(rows.keys["user_id"][rows.keys["days"] == days] for days in (7, 28)))
    assert len(users) > 5
    hazards = np.stack([[stack[(rows.keys["user_id"] == u) & (rows.keys["days"] == d)][0] for d in (7, 14, 28)] for u in users])
    kept = churn.survival(hazards)
    assert (np.diff(kept, axis=1) <= 0).all()
    assert (kept[:, -1] > 0).all()
    assert ((hazards > 0) & (hazards < 1)).all()
