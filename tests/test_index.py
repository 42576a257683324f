"""The sorted index: where an entity's events lie, what is before an instant, and what is derived from the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import FeatureError
from zoo.events.attributes import Attribute, Validity, looked_up
from zoo.events.index import MISSING, NO_SESSION, Index, fixed_point, from_fixed

EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 12)), max_size=30)


def build(events: list[tuple[int, int]], **columns: Any) -> Index:
    """Events (entity, time), numbered in the order given."""
    codes = np.array([c for c, _ in events], np.int32)
    time = np.array([t for _, t in events], np.int64)
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    return Index.build(codes, time, np.arange(len(events)), arrays, 6)


def ordered(events: list[tuple[int, int]], entity: int) -> list[tuple[int, int]]:
    """(time, seq) of an entity's events, in order."""
    return sorted((t, seq) for seq, (c, t) in enumerate(events) if c == entity and c > 0)


@given(EVENTS)
@settings(deadline=None)
def test_an_entitys_events_are_one_slice_in_order_of_time_then_seq(events: list[tuple[int, int]]) -> None:
    index = build(events)
    low, high = index.bounds(np.arange(-1, 9))
    for entity, a, b in zip(range(-1, 9), low, high):
        found = list(zip(index.time[a:b].tolist(), index.seq[a:b].tolist()))
        assert found == (ordered(events, entity) if entity >= 0 else [])
    assert len(index) == sum(c > 0 for c, _ in events)
    np.testing.assert_array_equal(index.entity_of(), np.repeat(np.arange(6), np.diff(index.offsets)))


@given(EVENTS, st.lists(st.tuples(st.integers(0, 5), st.integers(-4, 13)), max_size=10), st.booleans())
@settings(deadline=None)
def test_search_finds_the_first_event_at_or_after_an_instant(
    events: list[tuple[int, int]], rows: list[tuple[int, int]], right: bool
) -> None:
    index = build(events)
    codes, times = np.array([c for c, _ in rows], np.int32), np.array([t for _, t in rows], np.int64)
    low, high = index.bounds(codes)
    stop = index.search(low, high, times, right=right)
    before = [[t for t, _ in ordered(events, c) if t < at or (right and t == at)] for c, at in rows]
    assert (stop - low).tolist() == [len(past) for past in before]
    newest = [max((t for t, _ in ordered(events, c) if t < at), default=-1) for c, at in rows]
    assert index.newest(codes, times).tolist() == newest


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("cached", [0, 1 << 22])
@pytest.mark.parametrize("cells", [None, 1, 16])
def test_many_searches_at_once_find_what_one_by_one_finds(
    monkeypatch: pytest.MonkeyPatch, right: bool, cached: int, cells: int | None
) -> None:
    monkeypatch.setattr("zoo.events.index._CACHED", cached)  # 0: in the order of memory, as in a log too large for a cache
    rng = np.random.default_rng(0)
    if cells is not None:
        monkeypatch.setattr("zoo.events.index._SMALL", 0)
        monkeypatch.setattr("zoo.events.cells._MANY", 1)
        monkeypatch.setattr("zoo.events.cells.EVENTS", cells)
        monkeypatch.setattr("zoo.events.cells._STEP", 100)
    codes, time = rng.integers(0, 40, 3000) ** 2 % 37, rng.integers(-50, 50, 3000)
    index = Index.build(codes, time, np.arange(3000), {}, 40)
    rows, times = rng.integers(-1, 42, 40_000), np.sort(rng.integers(-60, 60, (3, 40_000)), axis=0)
    low, high = index.bounds(rows)
    found = index.search(low, high, times, right=right, codes=None if cells is None else rows)
    assert found.dtype == np.int64
    assert cells is None or index._table[0].number > 1  # type: ignore[index,union-attr]
    for line, wanted in zip(found, times, strict=True):
        np.testing.assert_array_equal(index.search(low, high, wanted, right=right), line)
    side = "right" if right else "left"
    for row in range(200):
        expected = low[row] + np.searchsorted(index.time[low[row] : high[row]], times[:, row], side)
        np.testing.assert_array_equal(found[:, row], expected)
        few = index.search(low[row : row + 1], high[row : row + 1], times[:, row : row + 1], right=right)
        np.testing.assert_array_equal(few[:, 0], expected)


def test_money_survives_fixed_point_and_missing_stays_missing() -> None:
    values = np.array([0.1, -2.5, np.nan, 1e9, 0.0])
    np.testing.assert_array_equal(from_fixed(fixed_point(values)), values)
    assert fixed_point(values)[2] == MISSING


def test_a_money_column_without_values_is_missing_everywhere_and_a_misspelt_one_is_named() -> None:
    index = build([(2, 1), (2, 2)], weight=[1.0, 2.0])
    assert index.column("price").tolist() == [MISSING, MISSING]
    with pytest.raises(FeatureError, match="no event column 'prize'; it has: age, day, gap, hour, price, quantity, time, value"):
        index.column("prize")


def test_a_code_younger_than_the_item_table_has_no_attributes() -> None:
    assert looked_up(np.array([0, 1, 7, 8]), np.array([3, 4, 0, 99])).tolist() == [8, 0, 0, 0]
    assert np.isnan(looked_up(np.array([np.nan, np.nan, 2.0]), np.array([5]))).all()
    index = build([(2, 1), (2, 2)], item_id=np.array([2, 9], np.int32))
    index.attributes = {"items.brand": Attribute(np.array([0, 1, 5], np.int32), "items.brand")}
    assert index.column("items.brand").tolist() == [5, 0]
    assert index.dictionary("items.brand") == "items.brand"


def test_a_visit_begins_with_another_session_or_after_a_pause_where_there_is_none() -> None:
    minute = 60_000_000
    events = [(2, 0), (2, minute), (2, 40 * minute), (2, 41 * minute), (3, 41 * minute), (3, 42 * minute)]
    sessions = [1, 1, 1, 2, 2, 2]
    assert build(events, session=sessions).visits(1800).tolist() == [True, False, False, True, True, False]
    assert build(events).visits(1800).tolist() == [True, False, True, False, True, False]
    assert build(events, session=[NO_SESSION] * 6).visits(1800).tolist() == [True, False, True, False, True, False]
    some = [NO_SESSION, 1, 1, NO_SESSION, NO_SESSION, 5]
    assert build(events, session=some).visits(1800).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("zone", ["UTC", "Etc/UTC", "America/New_York", "Asia/Kathmandu"])
def test_calendar_columns_are_those_of_the_zone(zone: str) -> None:
    from datetime import date, datetime
    from zoneinfo import ZoneInfo

    seconds = [-1, 0, 1_489_906_799, 1_489_906_801, 1_509_843_600, 1_583_020_799]
    index = build([(2, s * 1_000_000) for s in seconds])
    index.timezone = zone
    local = [datetime.fromtimestamp(s, ZoneInfo(zone)) for s in seconds]
    assert index.column("hour").tolist() == [d.hour for d in local]
    assert index.column("weekday").tolist() == [d.weekday() for d in local]
    assert index.column("day").tolist() == [(d.date() - date(1970, 1, 1)).days for d in local]


def test_a_part_of_the_index_has_the_same_events_under_new_codes() -> None:
    events = [(2, 1), (3, 2), (2, 5), (4, 1), (3, 9)]
    index = build(events, weight=np.arange(5.0))
    part = index.events(np.array([3, 5, 2]), np.array([9, 9, 2]))
    assert np.diff(part.offsets).tolist() == [0, 0, 1, 0, 1]
    assert (part.time.tolist(), part.seq.tolist(), part.columns["weight"].tolist()) == ([2, 1], [1, 0], [1.0, 0.0])


def test_the_row_that_holds_is_the_newest_begun_by_then() -> None:
    validity, order = Validity.of(np.array([3, 2, 3, 3]), np.array([50, 10, 40, 40]), size=4)
    assert order.tolist() == [1, 2, 3, 0]
    codes, times = np.array([2, 2, 3, 3, 3, 3, 0, 1, 99]), np.array([9, 10, 39, 40, 49, 50, 99, 99, 99])
    assert validity.rows(codes, times).tolist() == [-1, 0, -1, 2, 2, 3, -1, -1, -1]
    assert validity.rows(np.array([0, 1, 2, 3])).tolist() == [-1, -1, 0, 3]


@pytest.mark.parametrize("events", [0, 900, 20_000])
@pytest.mark.parametrize("right", [False, True])
def test_rows_searched_together_find_what_each_finds_alone(right: bool, events: int) -> None:
    rng = np.random.default_rng(3)
    codes, time = rng.integers(1, 40, events).astype(np.int32), rng.integers(-50, 50, events)
    index = Index.build(codes, time, np.arange(events), {}, 45)
    asked = rng.integers(-1, 60, 200).astype(np.int32)
    low, high = index.bounds(asked)
    times = np.concatenate((rng.integers(-60, 60, (3, 198)), [[np.iinfo(np.int64).min, np.iinfo(np.int64).max]] * 3), axis=1)
    alone = [index.search(low[i : i + 1], high[i : i + 1], times[:, i : i + 1], right=right) for i in range(200)]
    assert np.array_equal(index.search(low, high, times, right=right), np.concatenate(alone, axis=1))
    if not right:
        ones = [index.search_one(code, times[:, i]) for i, code in enumerate(asked.tolist())]
        assert np.array_equal(np.array(ones).T, np.concatenate(alone, axis=1))
