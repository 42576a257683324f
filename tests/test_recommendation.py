"""Rows of the recommendation task against a loop over each user's events."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import shop

from zoo.contract import Examples
from zoo.errors import UsageError
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.events.view import LogView
from zoo.manager import plugins
from zoo.project import TaskSettings
from zoo.tasks import recommendation
from zoo.training import split

DAY = shop.DAY
CUT = shop.START + 60 * DAY
BY_TIME = {"protocol": "time_cut", "event_type": "purchase", "validation": "10d"}


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    return shop.events(seed=5, users=30, days=90)


@pytest.fixture(scope="module")
def view(columns: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LogView:
    root = tmp_path_factory.mktemp("log")
    shop.make_log(root / "log", columns)
    return LogView.open(root / "log")


def by_user(columns: dict[str, Any]) -> dict[int, list[tuple[int, str, int]]]:
    """User -> (time, type, item) in order."""
    out = defaultdict(list)
    for user, kind, time, item in zip(columns["user_id"], columns["event_type"], columns["time"], columns["item_id"]):
        out[int(user)].append((int(time), str(kind), int(item)))
    return {user: sorted(events, key=lambda event: event[0]) for user, events in out.items()}


def found(view: LogView, rows: Examples) -> dict[int, tuple[int, Any]]:
    """User -> (time, item's identifier)."""
    items = view.log.dictionary("item_id").decode(rows.target.astype(np.int32)).to_pylist()
    assert len(set(rows.keys["user_id"].tolist())) == len(rows)
    assert (np.diff(rows.time) >= 0).all()
    return {user: (time, item) for user, time, item in zip(rows.keys["user_id"].tolist(), rows.time.tolist(), items)}


def trained(events: list[tuple[int, str, int]], wanted: Any, end: int) -> tuple[int, Any] | None:
    """The training row of a user's events before ``end``."""
    past = [event for event in events if event[0] < end]
    if not past:
        return None
    time, kind, item = past[-1]
    alone = sum(other[0] == time for other in past) == 1
    return (time, item) if wanted(kind, item) and alone else (end, None)


@pytest.mark.parametrize("event_type", ["purchase", None, ["view", "purchase"]])
def test_leave_one_out_is_what_a_loop_over_events_finds(columns: dict[str, Any], view: LogView, event_type: Any) -> None:
    def wanted(kind: str, item: int) -> bool:
        return item > 0 and (event_type is None or kind in event_type)

    parts = recommendation.split(view, {"event_type": event_type})
    test, validation, training = {}, {}, {}
    for user, events in by_user(columns).items():
        chosen = [event for event in events if wanted(*event[1:])]
        end = int(columns["time"].max()) + 1
        for part, back in ((test, 1), (validation, 2)):
            if len(chosen) >= back:
                time, _, item = chosen[-back]
                end = time
                if any(event[0] < time for event in events):
                    part[user] = (time, item)
        if (row := trained(events, wanted, end)) is not None:
            training[user] = row
    assert found(view, parts.test) == test
    assert parts.validation is not None
    assert found(view, parts.validation) == validation
    assert found(view, parts.train) == training
    np.testing.assert_array_equal(parts.test.known_at, parts.test.time)


@pytest.mark.parametrize("min_history", [0, 1, 12])
def test_a_time_cut_is_what_a_loop_over_events_finds(columns: dict[str, Any], view: LogView, min_history: int) -> None:
    parts = recommendation.split(view, {**BY_TIME, "min_history": min_history}, CUT, CUT + 20 * DAY)
    for rows, start, end in ((parts.test, CUT, CUT + 20 * DAY), (parts.validation, CUT - 10 * DAY, CUT)):
        expected, known_at = {}, {}
        for user, events in by_user(columns).items():
            after = [event for event in events if start <= event[0] < end and event[1] == "purchase"]
            if after and sum(event[0] < start for event in events) >= min_history:
                expected[user], known_at[user] = (start, after[0][2]), after[0][0]
        assert rows is not None
        assert found(view, rows) == expected
        assert dict(zip(rows.keys["user_id"].tolist(), rows.known_at.tolist())) == known_at
    training = {}
    for user, events in by_user(columns).items():
        row = trained(events, lambda kind, item: kind == "purchase", CUT - 10 * DAY)
        if row is not None:
            training[user] = row
    assert found(view, parts.train) == training
    assert {item is None for _, item in training.values()} == {True, False}
    assert (parts.train.known_at <= CUT - 10 * DAY).all()


@pytest.mark.parametrize("min_history", [1, 12])
def test_rolling_rows_are_every_such_event_as_of_just_before_it(columns: dict[str, Any], view: LogView, min_history: int) -> None:
    parts = recommendation.split(view, {**BY_TIME, "protocol": "rolling", "min_history": min_history}, CUT, CUT + 20 * DAY)
    for rows, start, end in ((parts.test, CUT, CUT + 20 * DAY), (parts.validation, CUT - 10 * DAY, CUT)):
        assert rows is not None
        items = view.log.dictionary("item_id").decode(rows.target.astype(np.int32)).to_pylist()
        expected = [
            (user, time, item)
            for user, events in by_user(columns).items()
            for time, kind, item in events
            if kind == "purchase" and start <= time < end and sum(event[0] < time for event in events) >= min_history
        ]
        assert sorted(zip(rows.keys["user_id"].tolist(), rows.time.tolist(), items)) == sorted(expected)
        assert len(expected) > len({user for user, _, _ in expected})
        np.testing.assert_array_equal(rows.known_at, rows.time)
    at_the_cut = recommendation.split(view, {**BY_TIME, "min_history": min_history}, CUT, CUT + 20 * DAY)
    assert found(view, parts.train) == found(view, at_the_cut.train)


def test_every_event_of_a_span_is_a_row(columns: dict[str, Any], view: LogView) -> None:
    rows = recommendation.examples(view, {"event_type": "purchase"}, CUT, CUT + DAY)
    items = view.log.dictionary("item_id").decode(rows.target.astype(np.int32)).to_pylist()
    expected = [
        (int(u), int(t), int(i))
        for u, t, i, k in zip(columns["user_id"], columns["time"], columns["item_id"], columns["event_type"])
        if k == "purchase" and CUT <= t < CUT + DAY
    ]
    assert sorted(zip(rows.keys["user_id"].tolist(), rows.time.tolist(), items)) == sorted(expected)


def test_a_log_of_positions_leaves_one_out_and_has_no_cut_in_time(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path / "log", LogSchema(clock="order"))
    rows = [(user, item, position) for user in (1, 2) for position, item in enumerate((10, 11, 12, 13 + user), start=1)]
    frame = pl.DataFrame(rows, ("user_id", "item_id", "position"), orient="row").with_columns(event_type=pl.lit("rating"))
    log.append(frame, idempotency_key="a")
    view = LogView.open(tmp_path / "log")
    parts = recommendation.split(view, {})
    second = 1_000_000
    assert found(view, parts.test) == {1: (4 * second, 14), 2: (4 * second, 15)}
    assert parts.validation is not None
    assert found(view, parts.validation) == {1: (3 * second, 12), 2: (3 * second, 12)}
    assert found(view, parts.train) == {1: (2 * second, 11), 2: (2 * second, 11)}
    with pytest.raises(UsageError, match=r"positions instead of times.* use leave_one_out"):
        recommendation.split(view, {"protocol": "time_cut"}, CUT)


def test_a_basket_is_learnt_from_whole(tmp_path: Path) -> None:
    bought = [(1, 10, 1), (2, 10, 2), (1, 12, 3), (1, 12, 4), (1, 30, 1), (2, 30, 1), (1, 40, 2), (2, 40, 2)]  # user, day, item
    columns = {
        "user_id": np.array([user for user, _, _ in bought]),
        "item_id": np.array([item for _, _, item in bought]),
        "event_type": np.array(["purchase"] * len(bought), object),
        "time": np.array([day for _, day, _ in bought]) * DAY + shop.START,
        "campaign_id": np.full(len(bought), -1),
    }
    shop.make_log(tmp_path / "log", columns)
    view = LogView.open(tmp_path / "log")
    parts = recommendation.split(view, {**BY_TIME, "validation": "12d"}, shop.START + 40 * DAY)
    end = shop.START + 28 * DAY
    assert found(view, parts.train) == {1: (end, None), 2: (shop.START + 10 * DAY, 2)}
    ids = parts.train.keys["user_id"].tolist()
    held = view.index("user_id").bounds(view.codes("user_id", ids))
    assert dict(zip(ids, (view.index("user_id").search(*held, parts.train.time) - held[0]).tolist())) == {1: 3, 2: 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocl": "time_cut"}, r"unknown setting in \[tasks\.recommendation\] 'protocl'; choose one of: .*protocol"),
        ({"protocol": "random"}, "unknown protocol .*'random'; choose one of: leave_one_out, rolling, time_cut"),
        ({"event_type": "buy"}, "'buy' is not in the log; it has: .*purchase"),
        ({"event_type": ["purchase", "buy"]}, "'buy' is not in the log"),
        ({"min_history": -1}, "min_history is -1; expected a number of events"),
        ({"candidates": "many"}, "candidates is 'many'; expected a number of items, 1 or more"),
        ({"candidates": 0}, "candidates is 0; expected a number of items, 1 or more"),
        ({"exclude_seen": "no"}, "exclude_seen is 'no'; expected true or false"),
        ({"average": "users"}, r"unknown average in \[tasks\.recommendation\] 'users'; choose one of: items, rows"),
        ({"average": ["rows"]}, r"unknown average in \[tasks\.recommendation\] \['rows'\]"),
        ({"protocol": "time_cut"}, "time_cut needs an instant: test_start"),
        ({"protocol": "time_cut", "test_start": "2035-01-01"}, "no validation rows|no test rows"),
        ({"test_start": "2017-09-01"}, "leave_one_out has no start and no end"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(view: LogView, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recommendation.split(view, settings)


def test_training_splits_by_the_tasks_own_rule(view: LogView) -> None:
    task = plugins().task("recommendation")
    settings = TaskSettings("next", "recommendation", ("popularity",), own={"event_type": "purchase"})
    parts = split(task, settings, view, None, None)
    assert parts.validation is not None
    assert found(view, parts.test) == found(view, recommendation.split(view, dict(settings.own)).test)
