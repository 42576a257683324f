"""Every aggregation against a loop over events that is obviously right."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SECOND, Event, Oracle
from random_logs import CATEGORIES, DAY, DEAR, FEATURES, MILK, TYPES, build, code, completed, examples, logs

from zoo.contract import Column
from zoo.errors import FeatureError
from zoo.events.evaluate import Evaluator
from zoo.events.log import EventLog
from zoo.events.pairs import evaluate_pairs, member_sets
from zoo.events.reach import reach
from zoo.events.schema import LogSchema
from zoo.events.specs import (
    Aggregation,
    Condition,
    Feature,
    count,
    decayed,
    distinct,
    first_n,
    last,
    last_distinct_n,
    last_n,
    maximum,
    mean,
    minimum,
    quiet,
    ratio,
    recency,
    std,
    survival,
    tenure,
    total,
)
from zoo.events.view import LogView


def evaluator(events: list[Event], entity: str = "user_id", sessions: bool = True) -> Evaluator:
    return Evaluator(build(events, entity, sessions), TYPES, code)


def shown(value: Any, f: Feature, dictionary: str | None) -> Any:
    """What the oracle says, as a column shows it: codes, and NaN or 0 for what is missing."""
    if isinstance(value, list):
        return [shown(v, f, dictionary) for v in value]
    if value is None:
        return 0 if dictionary else math.nan
    return code(dictionary, value) if dictionary else value


def exact(f: Feature) -> bool:
    """Whether nothing is rounded on the way: all but sums of floats, such as visits' sums are, and what is worked out from them."""
    floats = f.column in ("weight", "gap") or f.step == "visit"
    return f.kind not in ("std", "decay", "quiet") and not (f.kind in ("sum", "mean", "ratio") and floats)


def same(got: Any, expected: Any, f: Feature) -> bool:
    if isinstance(expected, list):
        return len(got) == len(expected) and all(same(a, b, f) for a, b in zip(got, expected))
    if math.isnan(got) or math.isnan(expected):
        return math.isnan(got) and math.isnan(expected)
    return bool(got == expected if exact(f) else math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9))


def cell(column: Column, row: int) -> Any:
    if column.offsets is None:
        return column.values[row]
    return list(column.values[column.offsets[row] : column.offsets[row + 1]])


@pytest.mark.parametrize("entity", ["user_id", "item_id"])
@given(
    events=logs(),
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 41 * 86_400)), min_size=1, max_size=4),
    equal=st.booleans(),
    lag=st.sampled_from((0, 0, 1, 86_400)),
    sessions=st.booleans(),
)
def test_every_feature_equals_the_loop_over_events(
    entity: str, events: list[Event], rows: list[tuple[int, int]], equal: bool, lag: int, sessions: bool
) -> None:
    if not sessions:
        events = [e | {"session": None} for e in events]
    of_events = [(e[entity] or 0, e["time"] + lag * SECOND) for e in events[:6]]
    asked = [(c, t * SECOND) for c, t in rows] + of_events
    aggregation = Aggregation((entity,), FEATURES, equal, lag=lag)
    codes, times = np.array([c for c, _ in asked], np.int32), np.array([t for _, t in asked], np.int64)
    own = evaluator(events, entity, sessions)
    columns = own.evaluate(aggregation, np.append(codes, 0), np.append(times, 0))
    for row in {
        0,
        len(asked) // 2,
        len(asked) - 1,
    }:  # one row is answered by shorter ways, of the whole index and of its own events
        lone = own.over(own.index.events(codes[row : row + 1]))
        for some, own_code in ((own, codes[row]), (lone, 2)):
            alone = some.evaluate(aggregation, np.array([own_code], np.int32), times[row : row + 1])
            assert [*alone] == [*columns]
            for name, column in columns.items():
                expected, got = column.take(np.array([row])), alone[name]
                assert got.values.tobytes() == expected.values.tobytes(), (name, row, got, expected)
                assert (got.values.dtype, got.dictionary) == (expected.values.dtype, expected.dictionary)
                assert got.offsets is expected.offsets is None or got.offsets.tolist() == expected.offsets.tolist()
    for row, (entity_code, t) in enumerate(asked):
        mine = [e for e in events if entity_code > 0 and e[entity] == entity_code]
        oracle = Oracle(mine, t, equal=equal, lag=lag)
        for f in FEATURES:
            expected = shown(oracle(f), f, columns[f.name].dictionary)
            got = cell(columns[f.name], row)
            assert same(got, expected, f), (f.name, entity_code, t, got, expected)


@given(events=logs(), data=st.data())
def test_the_entities_own_events_answer_as_the_whole_log_does(events: list[Event], data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=4, unique=True)), np.int32)
    times = np.full(len(codes), 20 * DAY, np.int64)
    aggregation = Aggregation(("user_id",), FEATURES)
    whole = evaluator(events)
    offline = whole.evaluate(aggregation, codes, times)
    online = whole.over(whole.index.events(codes)).evaluate(aggregation, np.arange(2, 2 + len(codes), dtype=np.int32), times)
    with pytest.MonkeyPatch.context() as patch:  # as a log does that is large for these rows
        patch.setattr("zoo.events.evaluate._LARGE", -1)
        patch.setattr("zoo.events.evaluate._PART", 0)
        few = evaluator(events).evaluate(
            aggregation, np.append(codes, [0, -1, 99, codes[0]]), np.append(times, times[[0, 0, 0, 0]])
        )
    for name, column in offline.items():
        np.testing.assert_array_equal(column.values, online[name].values)
        np.testing.assert_array_equal(column.offsets, online[name].offsets)
        again = Column(few[name].values, few[name].offsets).take(np.arange(len(codes)))
        np.testing.assert_array_equal(again.values, column.values)
        np.testing.assert_array_equal(again.offsets, column.offsets)


def bounded(f: Feature) -> bool:
    """Whether a feature looks no further back than a time, or a number of events of any kind, says."""
    needed = reach(Aggregation(("user_id",), (f,)))
    return needed.window is not None and needed.session_gap is None and not needed.before and not any(needed.newest)


BOUNDED = [f for f in FEATURES if bounded(f)]


@given(events=logs(), data=st.data())
def test_what_lies_in_the_rows_own_windows_answers_as_the_whole_log_does(events: list[Event], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(BOUNDED), min_size=1, max_size=5, unique_by=lambda f: f.name))
    aggregation = Aggregation(("user_id",), tuple(chosen), data.draw(st.booleans()), lag=data.draw(st.sampled_from([0, 5])))
    codes = np.array(data.draw(st.lists(st.sampled_from([-1, 0, 2, 3, 4, 5, 6, 99]), min_size=1, max_size=8)), np.int32)
    times = np.array([data.draw(st.integers(-DAY, 20 * DAY)) for _ in codes], np.int64)
    expected = evaluator(events).evaluate(aggregation, codes, times)
    with pytest.MonkeyPatch.context() as patch:  # as a log does that is large for these rows
        patch.setattr("zoo.events.evaluate._LARGE", -1)
        patch.setattr("zoo.events.evaluate._SLICED", 0)
        patch.setattr("zoo.events.evaluate._SAMPLE", data.draw(st.sampled_from([2, 512])))
        patch.setattr(Evaluator, "_few", None)  # another way, which is for features that look at everything
        found = evaluator(events).evaluate(aggregation, codes, times)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name].values, column.values)
        np.testing.assert_array_equal(found[name].offsets, column.offsets)
        assert found[name].values.dtype == column.values.dtype


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
"""Identifiers of any script; equal to the eye is not equal."""


@given(
    events=st.lists(
        st.tuples(NAMES, st.one_of(st.none(), NAMES), st.integers(0, 50), st.sampled_from(sorted(TYPES))), max_size=20
    ),
    cut=st.integers(0, 20),
    t=st.integers(0, 60),
)
@settings(max_examples=examples(10))  # each makes a log on disk
def test_a_log_with_any_names_appended_in_two_parts_in_any_order_equals_the_loop(
    events: list[tuple[str, str | None, int, str]], cut: int, t: int
) -> None:
    first = [event(user_id=u, item_id=i, event_type=k, time=s * SECOND, seq=n) for n, (u, i, s, k) in enumerate(events)]
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog.create(folder, LogSchema(user_id="string", item_id="string", session=False))
        for number, part in enumerate((first[:cut], first[cut:])):
            names = ("user_id", "item_id", "event_type")
            columns = {name: pa.array([e[name] for e in part], pa.string()) for name in names}
            columns["time"] = pa.array([e["time"] for e in part], pa.int64())
            log.append(pa.table(columns), idempotency_key=str(number))
            view = LogView.open(folder)  # an index of the first part, into which the second is merged
            view.newest_events("user_id", np.array([2]), np.array([0]))
        users = sorted({e["user_id"] for e in first})
        codes = view.codes("user_id", pa.array(users, pa.string()))
        some = Condition("item_id", "!=", users[0] if users else "x")
        features = (last_n("items", "item_id", 3), last_distinct_n("types", "event_type", 2), count("n", "9s", where=(some,)))
        found = view.evaluate(Aggregation(("user_id",), features), {"user_id": codes}, np.full(len(users), t * SECOND))
        items, types = view.names("item_id"), view.names("event_type")
        for row, user in enumerate(users):
            oracle = Oracle([e | {"session": None} for e in first if e["user_id"] == user], t * SECOND)
            expected = [oracle(f) for f in features]
            assert [items[c] if c else None for c in cell(found["items"], row)] == expected[0]
            assert [types[c] for c in cell(found["types"], row)] == expected[1]
            assert found["n"].values[row] == expected[2]


PAIRS: tuple[Feature, ...] = tuple(
    replace(f, name=f"{f.name}_{via}", via=via)
    for via in ("item_id", "items.category")
    for f in (
        count("n"),
        count("n_30d", "30d"),
        count("bought_2d", "2d", where=("purchase", DEAR)),
        count("visits_30d", "30d", step="visit"),
        total("spend", "value"),
        mean("mean", "value", "30d"),
        minimum("min", "weight"),
        maximum("max", "value", "7d", where=("view",)),
        std("std", "value"),
        distinct("items", "item_id", "30d"),
        ratio("conversion", ("purchase",), ("view",), "30d", smoothing=1, prior=0.5),
        decayed("decayed", "7d"),
        recency("recency"),
        tenure("tenure"),
        last("last", "value"),
        last_n("values", "value", 3, where=("view", "cart")),
        last_n("gaps", "gap", 3),
        last_n("visit_values", "value", 2, step="visit", of="sum", max_age="30d"),
        first_n("first", "item_id", 2),
        last_distinct_n("different", "item_id", 2, where=(MILK,)),
        quiet("quiet", "1d", "30d"),
        survival("survival", "1d"),
    )
)


def check_pairs(
    columns: dict[str, Column], row: int, matching: list[Event], features: tuple[Feature, ...], t: int, lag: int
) -> None:
    oracle = Oracle(matching, t, lag=lag)
    for f in features:
        expected = shown(oracle(f), f, columns[f.name].dictionary)
        assert same(cell(columns[f.name], row), expected, f), (f.name, row, cell(columns[f.name], row), expected)


@given(
    events=logs(giant=False),
    sets=st.lists(st.tuples(st.integers(2, 4), st.integers(2, 7)), max_size=8),
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 41 * 86_400)), min_size=1, max_size=8),
    lag=st.sampled_from((0, 3600)),
)
def test_pairs_with_a_set_equal_the_loop_over_the_users_events_in_it(
    events: list[Event], sets: list[tuple[int, int]], rows: list[tuple[int, int, int]], lag: int
) -> None:
    codes, partners, times = (np.array(part) for part in zip(*rows))
    first, second = np.array([p for p, _ in sets], np.int32), np.array([i for _, i in sets], np.int32)
    whole = evaluator(events)
    categories = whole.index.attributes["items.category"].values
    members = {"item_id": member_sets(first, second), "items.category": member_sets(first, categories[second])}
    aggregation = Aggregation(("user_id", "campaign_id"), PAIRS, members="campaign_items", lag=lag)
    got = evaluate_pairs(whole, aggregation, codes, partners, times * SECOND, members)
    for row, (user, partner, t) in enumerate(rows):
        inside = {item for p, item in sets if p == partner}
        named = {CATEGORIES[item] for item in inside} - {None}
        mine = [e for e in events if e["user_id"] == user]
        for via, wanted in (("item_id", inside), ("items.category", named)):
            features = tuple(f for f in PAIRS if f.via == via)
            check_pairs(got, row, [e for e in mine if e[via] in wanted], features, t * SECOND, lag)


@pytest.mark.parametrize("second", ["item_id", "items.category", "shop"])
@given(
    events=logs(giant=False),
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 41 * 86_400)), min_size=1, max_size=8),
)
def test_pairs_that_events_carry_equal_the_loop_over_the_users_events_that_name_the_partner(
    second: str, events: list[Event], rows: list[tuple[int, int, int]]
) -> None:
    codes, partners, times = (np.array(part) for part in zip(*rows))
    whole = evaluator(events)
    features = tuple(f for f in PAIRS if f.via == "item_id")
    aggregation = Aggregation(("user_id", second), features)
    got = evaluate_pairs(whole, aggregation, codes, partners, times * SECOND, None, whole.index.column(second))
    dictionary = str(whole.index.dictionary(second))
    for row, (user, partner, t) in enumerate(rows):
        named = [e for e in events if e["user_id"] == user and e[second] is not None and code(dictionary, e[second]) == partner]
        check_pairs(got, row, named, features, t * SECOND, 0)


@pytest.mark.parametrize(
    "feature",
    [
        count("f", "7d"),
        recency("f"),
        last_n("f", "gap", 3),
        last_n("f", "item_id", 3, max_age="7d"),
        tenure("f"),
        decayed("f", "7d"),
        mean("f", "age"),
        last("f", "hour"),
        count("f", where=(Condition("weekday", "==", 1),)),
        ratio("f", (), (Condition("hour", "==", 1),)),
        last_n("f", "", 3, step="visit", of="length"),
        count("f", step="visit"),
    ],
)
def test_a_log_without_times_refuses_what_needs_them(feature: Feature) -> None:
    index = build([])
    index.ordered_only = True
    del index.columns["session"]  # type: ignore[attr-defined]
    with pytest.raises(FeatureError, match="only an order"):
        Evaluator(index, TYPES).evaluate(Aggregation(("user_id",), (feature,)), np.array([2], np.int32), np.array([0], np.int64))


def test_a_log_without_times_answers_what_order_alone_decides() -> None:
    events = [event(seq=n, time=n * SECOND, item_id=2 + n % 3, session=n // 2) for n in range(6)]
    whole = evaluator(events)
    whole.index.ordered_only = True
    features = (
        last_n("items", "item_id", 2),
        first_n("first", "item_id", 2),
        last_distinct_n("different", "item_id", 2),
        count("n"),
        count("visits", step="visit"),
        total("sum", "value"),
        maximum("max", "value"),
        ratio("ratio", (DEAR,)),
        last("last", "item_id"),
    )
    got = whole.evaluate(Aggregation(("user_id",), features), np.array([2], np.int32), np.array([5 * SECOND]))
    oracle = Oracle(events, 5 * SECOND)
    assert [cell(got[f.name], 0) for f in features] == [oracle(f) for f in features]


def event(**columns: Any) -> Event:
    base = {"user_id": 2, "item_id": 2, "event_type": "view", "value": 6.0, "weight": 0.0, "session": 1, "shop": None}
    found = base | columns
    return completed(found) if isinstance(found["item_id"], int) else found


def test_a_log_without_times_refuses_the_item_side() -> None:
    index = build([], "item_id")
    index.ordered_only = True
    with pytest.raises(FeatureError, match="item_id"):
        Evaluator(index, TYPES).evaluate(
            Aggregation(("item_id",), (count("n"),)), np.array([2], np.int32), np.array([0], np.int64)
        )


def test_an_unknown_column_is_named_with_those_there_are() -> None:
    with pytest.raises(FeatureError, match="no event column 'colour'; it has: age, day"):
        Evaluator(build([]), TYPES).evaluate(
            Aggregation(("user_id",), (total("x", "colour"),)), np.array([2], np.int32), np.array([0], np.int64)
        )


def test_money_sums_are_exact_whatever_the_order() -> None:
    cents = [0.1, 0.2, 0.3, 1e9, -1e9] * 200
    events = [event(time=i, value=v, seq=i) for i, v in enumerate(cents)]
    got = evaluator(events).evaluate(
        Aggregation(("user_id",), (total("s", "value"),)), np.array([2], np.int32), np.array([10**9], np.int64)
    )
    assert got["s"].values[0] == 120.0


def test_sums_over_more_windows_than_the_means_before_them_are_all_there() -> None:
    events = [event(user_id=2, seq=n, time=n * DAY, value=1.0 + n) for n in range(9)]
    means = (mean("mean_4d", "value", "4d"), mean("mean_2d", "value", "2d"))
    sums = (total("sum_4d", "value", "4d"), total("sum_2d", "value", "2d"), total("sum_1d", "value", "1d"))
    aggregation = Aggregation(("user_id",), (*means, *sums))
    found = evaluator(events).evaluate(aggregation, np.array([2], np.int32), np.array([9 * DAY]))
    assert {name: column.values.tolist() for name, column in found.items()} == {
        "mean_4d": [7.5],
        "mean_2d": [8.5],
        "sum_4d": [30.0],
        "sum_2d": [17.0],
        "sum_1d": [9.0],
    }


def test_a_spread_far_from_zero_keeps_its_digits() -> None:
    events = [event(time=i, weight=1e9 + i % 2, seq=i) for i in range(1000)]
    got = evaluator(events).evaluate(Aggregation(("user_id",), (std("s", "weight"),)), np.array([2], np.int32), np.array([10**9]))
    assert got["s"].values[0] == 0.5


def test_calendar_columns_follow_the_log_timezone() -> None:
    index = build([event(time=23 * 3600 * SECOND, seq=0)])
    index.timezone = "Europe/Berlin"
    assert [int(index.column(c)[0]) for c in ("day", "hour", "weekday")] == [1, 0, 4]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (total("f", "item_id"), "sum of 'item_id', which holds names"),
        (count("f", where=(Condition("shop", "<", 3),)), "'shop' holds names, which have no order"),
        (count("f", where=(Condition("value", "==", "dear"),)), "'value' with the text 'dear', but it holds numbers"),
    ],
)
def test_what_a_column_cannot_answer_is_named(feature: Feature, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        evaluator([]).evaluate(Aggregation(("user_id",), (feature,)), np.array([2], np.int32), np.array([0], np.int64))


def test_a_condition_on_names_needs_their_codes() -> None:
    with pytest.raises(FeatureError, match="nothing here knows its codes"):
        Evaluator(build([]), TYPES).evaluate(
            Aggregation(("user_id",), (count("f", where=(MILK,)),)), np.array([2], np.int32), np.array([0], np.int64)
        )
