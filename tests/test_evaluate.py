"""Every aggregation against a loop over events that is obviously right."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import FeatureError
from zoo.events.attributes import Attribute
from zoo.events.evaluate import Evaluator
from zoo.events.index import MISSING, Index, fixed_point
from zoo.events.pairs import evaluate_pairs, member_sets
from zoo.events.specs import (
    Aggregation,
    Feature,
    count,
    decayed,
    distinct,
    last,
    last_n,
    mean,
    quiet,
    recency,
    survival,
    tenure,
    total,
)

TYPES = {"view": 2, "cart": 3, "purchase": 4}
CATEGORY = np.array([0, 1, 2, 2, 3, 3, 4, 4], np.int32)
SECOND = 1_000_000
DAY = 86_400 * SECOND

Event = dict[str, Any]


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Random logs with ties, repeated rows, missing values, events without item, huge gaps and arbitrary order."""
    instants = st.one_of(st.integers(0, 5), st.integers(0, 40 * 86_400), st.just(10**9)).map(lambda s: s * SECOND)
    event = st.fixed_dictionaries(
        {
            "user": st.integers(2, 5),
            "item": st.integers(0, 7).filter(lambda i: i != 1),
            "type": st.sampled_from(sorted(TYPES)),
            "time": instants,
            "value": st.one_of(st.none(), st.integers(-500, 5000).map(lambda v: v / 100)),
            "weight": st.floats(-10, 10),
            "session": st.integers(1, 3),
        }
    )
    events = draw(st.lists(event, max_size=25))
    events = events + draw(st.lists(st.sampled_from(events), max_size=4)) if events else events
    return [{**e, "seq": i} for i, e in enumerate(draw(st.permutations(events)))]


def build(events: list[Event], entity: str = "user", sessions: bool = True) -> Index:
    def column(name: str, dtype: Any) -> np.ndarray:
        return np.array([e[name] for e in events], dtype)

    columns = {
        "user_id": column("user", np.int32),
        "item_id": column("item", np.int32),
        "event_type": np.array([TYPES[e["type"]] for e in events], np.int32),
        "value": fixed_point(np.array([math.nan if e["value"] is None else e["value"] for e in events], float)),
        "weight": column("weight", float),
    }
    if sessions:
        columns["session"] = column("session", np.int64)
    return Index.build(
        column(entity, np.int32),
        column("time", np.int64),
        column("seq", np.int64),
        columns,
        size=8,
        dictionaries={"user_id": "user_id", "item_id": "item_id", "event_type": "event_type"},
        attributes={"items.category": Attribute(CATEGORY, "items.category")},
    )


def history(events: list[Event], entity: str, code: int, t: int, equal: bool) -> list[Event]:
    mine = [e for e in events if e[entity] == code and code > 0]
    mine.sort(key=lambda e: (e["time"], e["seq"]))
    out: list[Event] = []
    for number, e in enumerate(mine):
        before = mine[number - 1] if number else None
        begins = before is None or before["session"] != e["session"]
        out.append({**e, "visit": (out[-1]["visit"] if out else 0) + begins})
    return [e for e in out if e["time"] < t or (equal and e["time"] == t)]


def value_of(e: Event, column: str, steps: list[Event], at: int, t: int) -> Any:
    if column == "item_id":
        return e["item"]
    if column == "event_type":
        return TYPES[e["type"]]
    if column == "items.category":
        return CATEGORY[e["item"]]
    if column == "value":
        return math.nan if e["value"] is None else e["value"]
    if column == "age":
        return (t - e["time"]) / SECOND
    if column == "wait":
        return ((steps[at + 1]["time"] if at + 1 < len(steps) else t) - e["time"]) / SECOND
    if column == "gap":
        return (e["time"] - steps[at - 1]["time"]) / SECOND if at else math.nan
    return e[column]


def oracle(events: list[Event], entity: str, f: Feature, code: int, t: int, equal: bool) -> Any:
    past = history(events, entity, code, t, equal)
    kept = [e for e in past if not f.where or e["type"] in f.where]
    window = [e for e in kept if f.window is None or e["time"] >= t - f.window * SECOND]
    visits = [e for i, e in enumerate(kept) if i == 0 or kept[i - 1]["visit"] != e["visit"]]
    if f.kind == "decay":
        return math.fsum(0.5 ** ((t - e["time"]) / SECOND / f.window) for e in (visits if f.step == "visit" else kept))
    if f.kind in ("quiet", "survival"):
        steps = visits if f.step == "visit" else kept
        steps = [e for e in steps if f.window is None or e["time"] >= t - f.window * SECOND]
        waits = [value_of(e, "wait", steps, i, t) for i, e in enumerate(steps)]
        if f.kind == "quiet":
            return math.fsum(max(0.0, w - f.horizon) for w in waits) / sum(waits) if sum(waits) else math.nan
        longer = sum(w >= waits[-1] for w in waits[:-1])
        return (1 + sum(w >= waits[-1] + f.horizon for w in waits[:-1])) / (4 + longer) if steps else math.nan
    if f.kind == "count" and f.step == "visit":
        return sum(e in window for e in visits) if f.window is None else sum(e["time"] >= t - f.window * SECOND for e in visits)
    if f.kind == "count":
        return len(window)
    known = [value_of(e, f.column, kept, i, t) for i, e in enumerate(window)] if f.column else []
    if f.kind == "sum":
        return math.fsum(v for v in known if not math.isnan(v))
    if f.kind == "mean":
        present = [v for v in known if not math.isnan(v)]
        return math.fsum(present) / len(present) if present else math.nan
    if f.kind == "distinct":
        return len({v for v in known if v != 0})
    if f.kind == "last":
        return known[-1] if known else 0
    if f.kind == "recency":
        return (t - kept[-1]["time"]) / SECOND if kept else math.nan
    if f.kind == "tenure":
        return (t - kept[0]["time"]) / SECOND if kept else math.nan
    if f.step == "event":
        return [value_of(e, f.column, kept, i, t) for i, e in enumerate(kept)][-f.n :]
    steps = []
    for i, begin in enumerate(visits):
        inside = [e for e in kept if e["visit"] == begin["visit"]]
        if f.of == "first":
            steps.append(value_of(begin, f.column, visits, i, t))
        elif f.of == "count":
            steps.append(len(inside))
        elif f.of == "sum":
            steps.append(math.fsum(e["value"] or 0 for e in inside))
        else:
            steps.append(len({e["item"] for e in inside if e["item"]}))
    return steps[-f.n :]


FEATURES = (
    last_n("items", "item_id", 4),
    last_n("categories", "items.category", 4),
    last_n("bought", "item_id", 3, where=("purchase",)),
    last_n("gaps", "gap", 4),
    last_n("gaps_bought", "gap", 4, where=("purchase", "cart")),
    last_n("ages", "age", 4),
    last_n("values", "value", 4),
    last_n("visit_values", "value", 3, step="visit", of="sum"),
    last_n("visit_sizes", "", 3, step="visit", of="count"),
    last_n("visit_items", "item_id", 3, step="visit", of="distinct"),
    last_n("visit_gaps", "gap", 3, where=("purchase", "view"), step="visit"),
    last_n("visit_ages", "age", 3, step="visit"),
    last_n("waits", "wait", 4, where=("purchase", "view")),
    last_n("visit_waits", "wait", 3, step="visit"),
    quiet("quiet", "1d", where=("purchase", "view")),
    quiet("quiet_visits_28d", "2d", "28d", step="visit"),
    survival("survival", "1d", where=("purchase", "cart")),
    survival("survival_visits", "12h", step="visit"),
    decayed("decayed", "7d", where=("purchase",)),
    decayed("decayed_visits", "30d", step="visit"),
    count("n"),
    count("n_7d", "7d"),
    count("bought_7d", "7d", where=("purchase",)),
    count("visits_7d", "7d", step="visit"),
    total("spend", "value"),
    total("spend_7d", "value", "7d", where=("purchase",)),
    total("weight_7d", "weight", "7d"),
    mean("mean_value", "value", "28d"),
    distinct("distinct_7d", "item_id", "7d"),
    distinct("distinct_categories", "items.category"),
    recency("recency"),
    recency("recency_bought", where=("purchase",)),
    tenure("tenure"),
    last("last_item", "item_id"),
)


def same(got: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return len(got) == len(expected) and all(same(a, b) for a, b in zip(got, expected))
    return bool((math.isnan(got) and math.isnan(expected)) or math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9))


@pytest.mark.parametrize("entity", ["user", "item"])
@given(
    events=logs(),
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 41 * 86_400)), min_size=1, max_size=6),
    equal=st.booleans(),
)
@settings(deadline=None)
def test_every_feature_equals_the_loop_over_events(
    entity: str, events: list[Event], rows: list[tuple[int, int]], equal: bool
) -> None:
    times = np.array([t * SECOND for _, t in rows] + [e["time"] for e in events], np.int64)
    codes = np.array([c for c, _ in rows] + [e[entity] for e in events], np.int32)
    columns = Evaluator(build(events, entity), TYPES).evaluate(Aggregation((f"{entity}_id",), FEATURES, equal), codes, times)
    for f in FEATURES:
        column = columns[f.name]
        assert len(column) == len(codes)
        for row, (code, t) in enumerate(zip(codes, times)):
            got: Any = (
                column.values[row]
                if column.offsets is None
                else list(column.values[column.offsets[row] : column.offsets[row + 1]])
            )
            expected = oracle(events, entity, f, int(code), int(t), equal)
            assert same(got, expected), (f.name, code, t, got, expected)


@given(events=logs(), data=st.data())
@settings(deadline=None, max_examples=50)
def test_the_entities_own_events_answer_as_the_whole_log_does(events: list[Event], data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=4, unique=True)), np.int32)
    times = np.full(len(codes), 20 * DAY, np.int64)
    aggregation = Aggregation(("user_id",), FEATURES)
    whole = build(events)
    part = whole.events(codes)
    offline = Evaluator(whole, TYPES).evaluate(aggregation, codes, times)
    online = Evaluator(part, TYPES).evaluate(aggregation, np.arange(2, 2 + len(codes), dtype=np.int32), times)
    for name, column in offline.items():
        np.testing.assert_array_equal(column.values, online[name].values)


PAIRS: tuple[Feature, ...] = (
    count("overlap", via="item_id"),
    count("overlap_30d", "30d", via="item_id"),
    count("overlap_bought_2d", "2d", via="items.category", where=("purchase",)),
    count("overlap_7d", "7d", via="items.category", where=("purchase",)),
    total("overlap_spend", "value", via="item_id"),
    distinct("overlap_items", "item_id", via="item_id"),
    recency("overlap_recency", via="item_id"),
)


@given(events=logs(), sets=st.lists(st.tuples(st.integers(2, 4), st.integers(2, 7)), max_size=8), t=st.integers(0, 41 * 86_400))
@settings(deadline=None)
def test_pair_overlap_equals_the_loop_over_events(events: list[Event], sets: list[tuple[int, int]], t: int) -> None:
    codes, partners = (a.ravel().astype(np.int32) for a in np.meshgrid(np.arange(0, 7), np.arange(0, 6)))
    times = np.full(len(codes), t * SECOND, np.int64)
    first = np.array([p for p, _ in sets], np.int32)
    second = np.array([i for _, i in sets], np.int32)
    members = {"item_id": member_sets(first, second), "items.category": member_sets(first, CATEGORY[second])}
    got = evaluate_pairs(
        Evaluator(build(events), TYPES), Aggregation(("user_id", "campaign_id"), PAIRS), codes, partners, times, members
    )

    def reach(partner: int, via: str) -> Callable[[Event], bool]:
        inside = {i if via == "item_id" else int(CATEGORY[i]) for p, i in sets if p == partner}
        return lambda e: (e["item"] if via == "item_id" else int(CATEGORY[e["item"]])) in inside

    for f in PAIRS:
        for row, (code, partner) in enumerate(zip(codes, partners)):
            matching = [e for e in events if reach(int(partner), f.via)(e)]
            expected = oracle(matching, "user", f, int(code), t * SECOND, False)
            assert same(got[f.name].values[row], expected), (f.name, code, partner)


@pytest.mark.parametrize("feature", [count("n", "7d"), recency("r"), last_n("gaps", "gap", 3), tenure("t")])
def test_a_log_without_times_refuses_what_needs_them(feature: Feature) -> None:
    index = build([])
    index.ordered_only = True
    with pytest.raises(FeatureError, match="only an order"):
        Evaluator(index, TYPES).evaluate(Aggregation(("user_id",), (feature,)), np.array([2], np.int32), np.array([0], np.int64))


def test_a_log_without_times_refuses_the_item_side() -> None:
    index = build([], "item")
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
    events = [
        {"user": 2, "item": 2, "type": "view", "time": i, "value": v, "weight": 0.0, "session": 1, "seq": i}
        for i, v in enumerate(cents)
    ]
    got = Evaluator(build(events), TYPES).evaluate(
        Aggregation(("user_id",), (total("s", "value"),)), np.array([2], np.int32), np.array([10**9], np.int64)
    )
    assert got["s"].values[0] == 120.0


def test_a_saved_index_is_the_same_and_appears_whole(tmp_path: Path) -> None:
    events = [
        {"user": 2 + i % 3, "item": 2, "type": "cart", "time": i, "value": None, "weight": 1.0, "session": 1, "seq": i}
        for i in range(9)
    ]
    index = build(events)
    index.save(tmp_path / "a")
    index.save(tmp_path / "a")  # a second writer of the same content changes nothing
    opened = Index.open(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    for name, values in index.columns.items():
        np.testing.assert_array_equal(opened.columns[name], values)
    np.testing.assert_array_equal(opened.offsets, index.offsets)
    assert (opened.columns["value"] == MISSING).all()


def test_calendar_columns_follow_the_log_timezone() -> None:
    event = {
        "user": 2,
        "item": 2,
        "type": "view",
        "time": 23 * 3600 * SECOND,
        "value": None,
        "weight": 0.0,
        "session": 1,
        "seq": 0,
    }
    index = build([event])
    index.timezone = "Europe/Berlin"
    assert [int(index.column(c)[0]) for c in ("day", "hour", "weekday")] == [1, 0, 4]
