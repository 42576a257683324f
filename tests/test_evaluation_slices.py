"""Slices hold the rows that a plain count over the log puts there, and flag a stack that one member beats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from shop import Shop

from zoo.contract import Array, Examples, Target
from zoo.evaluation.metrics import METRICS, Ranked
from zoo.evaluation.ranking import ndcg
from zoo.evaluation.slices import by_slice, of_log
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.events.view import LogView
from zoo.manager import plugins
from zoo.project import Project
from zoo.training import train

DAY = 86_400_000_000
NOW = 1_700_000_000_000_000
BINARY = Target("binary")


def view_of(root: Path, events: list[tuple[str, str | None, float]], **schema: Any) -> LogView:
    """A log of (user, item, days before NOW)."""
    log = EventLog.create(root / "log", LogSchema(user_id="string", item_id="string", **schema))
    users, items, ages = zip(*events, strict=True)
    times = [NOW - int(age * DAY) for age in ages]
    table = {"user_id": users, "item_id": pa.array(items, pa.string()), "event_type": ["view"] * len(users), "time": times}
    log.append(pa.table(table), idempotency_key="events")
    log.put_table("items", pa.table({"item_id": ["a", "b", "c", "d"], "category": ["tea", "tea", "milk", None]}))
    return LogView.open(root / "log")


def rows(users: list[str], **keys: list[str]) -> Examples:
    n = len(users)
    columns = {name: np.array(values, object) for name, values in {"user_id": users, **keys}.items()}
    return Examples(columns, np.full(n, NOW), np.zeros(n), np.full(n, NOW))


def members(found: dict[str, Array], what: str) -> dict[str, list[int]]:
    return {
        name.removeprefix(f"{what}: "): np.flatnonzero(at).tolist() for name, at in found.items() if name.startswith(f"{what}: ")
    }


def test_rows_are_parted_by_how_much_how_lately_and_how_long_their_users_are_known(tmp_path: Path) -> None:
    events = [("one", "a", 3.0)]
    events += [("two", "b", age) for age in (0.5, 40.0)]
    events += [("six", "c", age) for age in np.linspace(8, 100, 6)]
    events += [("many", "d", age) for age in np.linspace(30, 400, 21)]
    events += [("later", "a", -1.0)]  # after every row: not seen
    found = of_log(view_of(tmp_path, events), rows(["later", "one", "two", "six", "many", "one"]), rows(["two", "six"]))
    assert members(found, "history") == {
        "no event": [0],
        "1 event": [1, 5],
        "2 to 5 events": [2],
        "6 to 20 events": [3],
        "more than 20 events": [4],
    }
    assert members(found, "newest event") == {
        "none": [0],
        "within a day": [2],
        "1 to 7 days ago": [1, 5],
        "7 to 28 days ago": [3],
        "longer ago": [4],
    }
    assert members(found, "first event") == {
        "none": [0],
        "up to 28 days": [1, 5],
        "28 to 90 days": [2],
        "90 to 365 days": [3],
        "longer": [4],
    }
    assert members(found, "user") == {"new": [0, 1, 4, 5], "known": [2, 3]}
    # the newest item of each: none, a, b, c, d, a
    assert members(found, "category") == {"tea": [1, 2, 5], "milk": [3], "none": [0, 4]}
    # d has 21 of 30 events and is the head; the others hold the last third
    assert members(found, "item") == {"head": [4], "tail": [1, 2, 3, 5]}


def test_a_row_about_an_item_is_parted_by_that_item(tmp_path: Path) -> None:
    found = of_log(view_of(tmp_path, [("u", "a", 1.0)]), rows(["u", "u"], item_id=["c", "x"]), rows(["u"]))
    assert members(found, "category") == {"milk": [0], "none": [1]}
    assert members(found, "item") == {"unseen": [0, 1]}


def test_a_log_without_times_has_no_slices_of_time_or_popularity(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path / "log", LogSchema(user_id="string", item_id="string", clock="order"))
    events = {"user_id": ["u", "v", "u"], "item_id": ["a", "b", "a"], "event_type": ["view"] * 3, "position": [1, 2, 3]}
    log.append(pa.table(events), idempotency_key="e")
    asked = rows(["u", "v"])
    found = of_log(LogView.open(tmp_path / "log"), asked, asked)
    assert {name.partition(":")[0] for name in found} == {"history", "user"}


# Quality


def scored(n: int = 400, seed: int = 0) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Target, scores of two members and their stack, and slices: on the first half ``a`` is right and the stack is not."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, n).astype(np.float64)
    good, poor = np.where(target == 1, 0.8, 0.2), np.full(n, 0.5)
    half = np.arange(n) < n // 2
    scores = {"a": good, "b": np.where(half, poor, good), "stack": np.where(half, poor, good)}
    return target, {name: each[:, None] for name, each in scores.items()}, {"first": half, "second": ~half, "all": half | ~half}


def test_a_slice_where_one_member_beats_the_stack_is_flagged() -> None:
    target, scores, slices = scored()
    found = by_slice(slices, target, scores, ["a", "b"], BINARY)
    assert {name: line["worse"] for name, line in found.items()} == {"first": True, "second": False, "all": True}
    first = found["first"]
    assert (first["rows"], first["metric"], first["best_member"]) == (200, "log_loss", "a")
    assert first["value"] == pytest.approx(np.log(2))
    assert first["difference"] == pytest.approx(np.log(2) + np.log(0.8))
    low, high = first["difference_interval"]
    assert 0 < low <= first["difference"] + 1e-12
    assert first["difference"] - 1e-12 <= high
    assert first["base_rate"] == pytest.approx(target[:200].mean())
    assert first["mean_score"] == 0.5
    ranked, _ = Ranked.of(target[200:], scores["stack"][200:, 0])
    assert found["second"]["auc"] == pytest.approx(float(METRICS["auc"].compute(ranked, np.ones((1, 200)))[0]))
    assert found["second"]["difference"] == 0.0


def test_intervals_draw_users_as_wholes() -> None:
    target, scores, slices = scored()
    own = by_slice(slices, target, scores, ["a"], BINARY)["all"]["value_interval"]
    whole = by_slice(slices, target, scores, ["a"], BINARY, groups=np.arange(400) // 40)["all"]
    assert whole["users"] == 10
    assert whole["value_interval"][1] - whole["value_interval"][0] > 3 * (own[1] - own[0])


def test_of_few_users_there_is_a_value_but_no_interval_and_no_flag() -> None:
    target, scores, slices = scored()
    found = by_slice(slices, target, scores, ["a", "b"], BINARY, groups=np.arange(400) // 50)["first"]
    assert found["users"] == 4
    assert found["difference"] > 0.4
    assert (found["value_interval"], found["auc_interval"], found["difference_interval"]) == (None, None, None)
    assert not found["worse"]


def test_classes_values_and_rankings_have_their_own_metric() -> None:
    target, scores, slices = scored()
    two = {name: np.concatenate([1 - each, each], axis=1) for name, each in scores.items()}
    classes = by_slice(slices, target, two, ["a", "b"], Target("multiclass", ("no", "yes")))
    binary = by_slice(slices, target, scores, ["a", "b"], BINARY)
    for name, line in classes.items():
        assert line["value"] == pytest.approx(binary[name]["value"])
        assert line["worse"] == binary[name]["worse"]
    amounts = by_slice(slices, target, scores, ["a", "b"], Target("value"))
    assert amounts["first"]["value"] == pytest.approx(0.25)
    ranks = {"a": np.ones(400), "b": np.full(400, 3.0), "stack": np.full(400, 2.0)}
    ranking = by_slice({"all": slices["all"]}, target, ranks, ["a", "b"], Target("ranking"))["all"]
    assert (ranking["metric"], ranking["best_member"], ranking["worse"]) == ("ndcg@10", "a", True)
    assert ranking["difference"] == pytest.approx(float(ndcg(np.array([2.0]))[0]) - 1)
    assert by_slice(slices, target, scores, ["a", "b"], Target("uplift")) == {}


def test_training_keeps_slices_with_the_version(trained_shop: Shop, tmp_path: Path) -> None:
    project = Project.open(trained_shop.copy(tmp_path / "shop").root)
    trained = train(project, "churn", plugins=plugins())
    assert trained.version is not None
    found = trained.version.metrics["slices"]
    for what in ("history", "newest event", "first event", "category", "item", "user"):
        assert sum(line["rows"] for name, line in found.items() if name.startswith(f"{what}:")) == len(trained.test)
    assert all(line["best_member"] in ("gbdt", "gru") for line in found.values())
