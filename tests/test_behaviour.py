"""Behaviour and propensity: rows against a loop over events, classes of the log, and the leaderboard of classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import shop
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.metrics import log_loss as sklearn_log_loss

from zoo.errors import UsageError
from zoo.evaluation import class_leaderboard
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.events.view import LogView
from zoo.project import TaskSettings
from zoo.tasks import behaviour, propensity, recommendation
from zoo.training import split

HOUR = 3_600_000_000
MINUTE = 60_000_000
TYPES = ("view", "cart", "purchase")


def events(seed: int = 0, users: int = 12, count: int = 400, sessions: bool = False) -> dict[str, Any]:
    """Events in order of time, on whole minutes so that instants repeat."""
    rng = np.random.default_rng(seed)
    time = shop.START + np.sort(rng.integers(0, 4 * 24 * 60, count)) * MINUTE
    out: dict[str, Any] = {
        "user_id": rng.integers(1, users + 1, count),
        "item_id": rng.integers(1, 6, count),
        "event_type": np.array(TYPES, object)[rng.choice(3, count, p=[0.6, 0.25, 0.15])],
        "timestamp": time,
    }
    if sessions:
        out["session"] = [f"{u}-{s}" if s else None for u, s in zip(out["user_id"], rng.integers(0, 4, count))]
    return out


def view_of(root: Path, columns: dict[str, Any], items: pl.DataFrame | None = None) -> LogView:
    log = EventLog.create(root / "log", LogSchema(session="session" in columns))
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()})
    log.append(frame.with_columns(pl.from_epoch("timestamp", "us").dt.replace_time_zone("UTC")), idempotency_key="all")
    if items is not None:
        log.put_table("items", items, "item_id")
    return LogView.open(root / "log")


def found(rows: Any) -> dict[tuple[int, int], float]:
    out = {(int(u), int(t)): float(y) for u, t, y in zip(rows.keys["user_id"], rows.time, rows.target)}
    assert len(out) == len(rows)
    assert (np.diff(rows.time) >= 0).all()
    return out


def listed(columns: dict[str, Any]) -> list[tuple[int, int, str, int]]:
    names = ("user_id", "timestamp", "event_type", "item_id")
    return [(int(u), int(t), str(k), int(i)) for u, t, k, i in zip(*(columns[n] for n in names))]


def test_rows_after_events_are_those_of_a_loop(tmp_path: Path) -> None:
    columns = events()
    view, every = view_of(tmp_path, columns), listed(columns)
    begin, end = shop.START + 6 * HOUR, shop.START + 80 * HOUR
    classes = behaviour.target(view, {}).classes
    assert set(classes[:-1]) == set(TYPES)
    assert classes[-1] == "nothing"
    rows = behaviour.examples(view, {"horizon": "5h"}, begin, end)
    expected, bought = {}, {}
    for user, time, kind, _ in every:
        at = time + 1
        if begin <= at < end:
            later = [(t, k) for u, t, k, _ in every if u == user and at <= t < at + 5 * HOUR]
            expected[user, at] = float(classes.index(later[0][1] if later else "nothing"))
            if kind == "cart":
                bought[user, at] = float(
                    any(k == "purchase" and i in (1, 2) for u, t, k, i in every if u == user and at <= t < at + 5 * HOUR)
                )
    assert found(rows) == expected
    assert set(expected.values()) == {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(rows.known_at, rows.time + 5 * HOUR)
    asked = {"after": ["cart"], "horizon": "5h", "items": [1, 2]}
    assert found(propensity.examples(view, asked, begin, end)) == bought
    assert set(bought.values()) == {0.0, 1.0}


def test_types_that_are_not_told_apart_do_not_count(tmp_path: Path) -> None:
    columns = events()
    view, every = view_of(tmp_path, columns), listed(columns)
    settings = {"horizon": "9h", "event_types": ["purchase", "cart"]}
    assert behaviour.target(view, settings).classes == ("purchase", "cart", "nothing")
    rows = found(behaviour.examples(view, settings, shop.START, shop.START + 90 * HOUR))
    for (user, at), label in rows.items():
        later = [k for u, t, k, _ in every if u == user and at <= t < at + 9 * HOUR and k != "view"]
        assert ("purchase", "cart", "nothing")[int(label)] == (later[0] if later else "nothing")


def test_rows_at_cuts_are_those_of_a_loop(tmp_path: Path) -> None:
    columns = events()
    items = pl.DataFrame({"item_id": [1, 2, 3, 4, 5], "category": ["toys", "toys", "tea", "tea", "tea"]})
    view, every = view_of(tmp_path, columns, items), listed(columns)
    settings = {
        "every": "7h",
        "active": "12h",
        "horizon": "10h",
        "event_type": ["cart", "purchase"],
        "where": {"category": "toys"},
    }
    begin, end = shop.START + 12 * HOUR, shop.START + 80 * HOUR
    expected = {}
    for cut in range(begin, end, 7 * HOUR):
        for user in {u for u, t, _, _ in every if cut - 12 * HOUR <= t < cut}:
            hits = (k != "view" and i <= 2 for u, t, k, i in every if u == user and cut <= t < cut + 10 * HOUR)
            expected[user, cut] = float(any(hits))
    assert found(propensity.examples(view, settings, begin, end)) == expected
    assert set(expected.values()) == {0.0, 1.0}


@pytest.mark.parametrize("named", [True, False])
def test_a_session_is_the_logs_or_parted_by_silence(tmp_path: Path, named: bool) -> None:
    columns = events(count=600, users=8, sessions=named)
    view = view_of(tmp_path, columns)
    numbered, last = {}, {}
    for row, (user, time, *_) in enumerate(listed(columns)):
        before = last.get(user)
        last[user] = (time, row if before is None or time - before[0] > 60 * MINUTE else before[1])
        name = columns["session"][row] if named else None
        numbered[row] = (user, last[user][1] if name is None else name)
    settings = {"horizon": "session", "silence": "1h"}
    rows = propensity.examples(view, settings, shop.START, shop.START + 100 * 24 * HOUR)
    expected, ends = {}, {}
    every = listed(columns)
    for row, (user, time, *_) in enumerate(every):
        of_session = [every[r] for r, session in numbered.items() if session == numbered[row]]
        expected[user, time + 1, numbered[row]] = float(any(k == "purchase" and t > time for _, t, k, _ in of_session))
        ends[user, time + 1, numbered[row]] = max(t for _, t, _, _ in of_session) + 60 * MINUTE

    def rows_of(values: Any) -> list[tuple[int, int, float]]:
        return sorted((user, time, float(value)) for (user, time, _), value in values.items())

    seen = list(zip(rows.keys["user_id"].tolist(), rows.time.tolist()))
    assert sorted((u, t, y) for (u, t), y in zip(seen, rows.target.tolist())) == rows_of(expected)
    assert sorted((u, t, float(k)) for (u, t), k in zip(seen, rows.known_at.tolist())) == rows_of(ends)
    assert set(expected.values()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizn": "1d"}, "horizn.*choose one of.*horizon"),
        ({"after": "buy"}, r"event type in after of \[tasks.behaviour\] 'buy'; choose one of: cart, purchase, view"),
        ({"event_types": ["view", "wish"]}, "event type in event_types of .* 'wish'"),
        ({"every": "1d", "horizon": "session"}, "leave out every, or name a horizon such as 7d"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        behaviour.examples(view_of(tmp_path, events(count=50)), settings, shop.START, shop.START + HOUR)


def test_what_the_log_cannot_answer_is_refused(tmp_path: Path) -> None:
    columns = events(count=50)
    view = view_of(tmp_path / "a", columns)
    with pytest.raises(UsageError, match="items: 99 is not in the log"):
        propensity.examples(view, {"items": [99]}, shop.START, shop.START + HOUR)
    with pytest.raises(UsageError, match="ends before the first label window closes"):
        behaviour.split(view, {"horizon": "300d"}, None, None)
    with pytest.raises(UsageError, match="no training rows around 2024-01-01"):
        behaviour.split(view, {"horizon": "1h"}, shop.START, None)
    columns["event_type"] = np.array(["nothing"] * 50, object)
    with pytest.raises(UsageError, match="an event type 'nothing'"):
        behaviour.target(view_of(tmp_path / "b", columns), {})


@pytest.mark.parametrize("cuts", [{}, {"every": "6h"}])
def test_training_rows_have_labels_known_before_the_test_begins(tmp_path: Path, cuts: dict[str, str]) -> None:
    view = view_of(tmp_path, events())
    for start in (None, shop.START + 60 * HOUR):
        parts = behaviour.split(view, {"horizon": "3h", **cuts}, start, None)
        assert parts.train.known_at.max() <= parts.test.time.min()
        assert parts.test.known_at.max() <= view.end + 1
        assert (len(np.unique(parts.test.time)) == 1) == bool(cuts)


def test_a_gap_and_open_labels_reach_the_tasks_that_split_their_rows_themselves(tmp_path: Path) -> None:
    view, start = view_of(tmp_path, events()), shop.START + 60 * HOUR
    for task in (behaviour.TASK, propensity.TASK):
        plain = TaskSettings(task.name, task.name, ("gbdt",), own={"horizon": "3h"})
        near, far = (split(task, each, view, start, None) for each in (plain, replace(plain, gap="6h")))
        assert near.train.known_at.max() > start - 6 * HOUR
        assert 0 < len(far.train) < len(near.train)
        assert far.train.known_at.max() <= start - 6 * HOUR
        late = split(task, plain, view, start, None, open_labels=True).test
        assert late.known_at.max() > view.end + 1 >= near.test.known_at.max()
        assert set(near.test.time) < set(late.time)


def test_a_task_without_a_gap_refuses_one(tmp_path: Path) -> None:
    settings = TaskSettings("recommendation", "recommendation", ("gru",), gap="6h")
    with pytest.raises(UsageError, match=r"setting in \[tasks.recommendation\] 'gap'"):
        split(recommendation.TASK, settings, view_of(tmp_path, events()), None, None)


def test_the_leaderboard_of_classes_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 300)
    raw = rng.random((300, 4)) + 2 * np.eye(4)[target] * rng.random((300, 1))
    good = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    even = np.full((300, 4), 0.25, np.float32)
    lines = class_leaderboard(
        target, {"good": good, "even": even}, ("a", "b", "c", "d"), against="even", groups=rng.integers(0, 80, 300)
    )
    shown = lines[0].as_dict()
    assert shown["log_loss"] == pytest.approx(sklearn_log_loss(target, good, labels=range(4)), rel=1e-5)
    assert shown["accuracy"] == accuracy_score(target, good.argmax(axis=1))
    each = [average_precision_score(target == k, good[:, k]) for k in range(3)]
    assert [shown[f"average_precision:{name}"] for name in "abc"] == pytest.approx(each)
    assert shown["average_precision"] == pytest.approx(np.mean(each))
    assert "average_precision:d" not in shown  # a class that does not occur
    assert shown["average_precision_interval"][0] < shown["average_precision"] < shown["average_precision_interval"][1]
    assert list(shown["differences"]) == ["log_loss"]
    difference = shown["differences"]["log_loss"]
    assert difference["value"] == pytest.approx(shown["log_loss"] - np.log(4), rel=1e-5)
    assert difference["p_value"] < 0.01
    assert "differences" not in lines[1].as_dict()
    with pytest.raises(UsageError, match="scores of shape"):
        class_leaderboard(target, {"a": good[:, :3]}, ("a", "b", "c", "d"))
    with pytest.raises(UsageError, match="numbers of 2 classes"):
        class_leaderboard(target, {"a": good[:, :2]}, ("a", "b"))
