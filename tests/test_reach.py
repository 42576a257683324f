"""What an aggregation says that it reaches is enough: evaluated over those events and columns alone, it gives the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SECOND, Event
from random_logs import DEAR, FEATURES, MILK, TYPES, build, code, examples, logs

from zoo.contract import Array
from zoo.events.evaluate import Evaluator
from zoo.events.index import Index
from zoo.events.reach import Reach, oldest, reach, reach_of
from zoo.events.specs import (
    Aggregation,
    Feature,
    Kind,
    count,
    decayed,
    first_n,
    last_distinct_n,
    last_n,
    mean,
    ratio,
    recency,
    tenure,
    total,
)


def cut(index: Index, start: Array, stop: Array, columns: frozenset[str]) -> Index:
    """An index of [start, stop) of each row's events, with these columns only; row i has code i + 2."""
    positions = np.concatenate([np.arange(a, b) for a, b in zip(start, stop)] or [np.zeros(0, np.int64)]).astype(np.int64)
    offsets = np.concatenate(([0, 0, 0], np.cumsum(stop - start)))
    kept = {name: values[positions] for name, values in index.columns.items() if name in columns}
    return replace(index, offsets=offsets, time=index.time[positions], seq=index.seq[positions], columns=kept, _derived={})


def test_every_kind_has_a_feature_that_is_tried() -> None:
    assert {f.kind for f in FEATURES} == set(get_args(Kind))


@given(
    events=logs(),
    times=st.lists(st.integers(0, 41 * 86_400), min_size=1, max_size=2),
    sessions=st.booleans(),
    lag=st.sampled_from((0, 3600)),
    later=st.integers(0, 30 * 86_400),
)
@settings(max_examples=examples(4))  # a feature at a time
def test_what_a_feature_reaches_is_enough_at_that_time_and_later(
    events: list[Event], times: list[int], sessions: bool, lag: int, later: int
) -> None:
    whole = Evaluator(build(events, sessions=sessions), TYPES, code)
    codes, at = (a.ravel() for a in np.meshgrid(np.arange(2, 6), np.array(times) * SECOND))
    low, high = whole.index.bounds(codes)
    stop, own = whole.index.search(low, high, at), np.arange(2, 2 + len(codes), dtype=np.int32)
    expected = [whole.evaluate(Aggregation(("user_id",), FEATURES, lag=lag), codes, t) for t in (at, at + later * SECOND)]
    for f in FEATURES:
        alone = Aggregation(("user_id",), (f,), lag=lag)
        reached = reach(alone)
        part = whole.over(cut(whole.index, oldest(whole, reached, low, stop, at), high, reached.columns))
        for full, t in zip(expected, (at, at + later * SECOND)):
            got = part.evaluate(alone, own, t)[f.name]
            np.testing.assert_allclose(got.values, full[f.name].values, rtol=1e-9, err_msg=f.name)
            np.testing.assert_array_equal(got.offsets, full[f.name].offsets, f.name)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((last_n("a", "item_id", 5),), Reach(frozenset({"item_id"}), {(): 5})),
        ((last_n("a", "gap", 5, where=("cart",)),), Reach(frozenset({"event_type"}), {("cart",): 6, (): 1})),
        (
            (last_n("a", "items.brand", 5), last_n("b", "value", 9), count("n", "7d"), total("s", "value", "2d")),
            Reach(frozenset({"item_id", "value"}), {(): 9}, window=7 * 86_400),
        ),
        ((recency("r"), tenure("t")), Reach(newest={(): 1}, window=None)),
        (
            (mean("m", "gap", "7d", where=("cart", DEAR)), ratio("r", (MILK,), ("view",), "2d")),
            Reach(frozenset({"event_type", "value", "item_id"}), {(): 1}, before=frozenset({("cart", DEAR)}), window=7 * 86_400),
        ),
        ((last_distinct_n("d", "age", 3, by="shop", max_age="1d"),), Reach(frozenset({"shop"}), {(): 1}, window=86_400)),
        ((first_n("f", "value", 3), decayed("d", "1d")), Reach(frozenset({"value"}), {(): 1}, window=None)),
        ((count("v", "7d", step="visit"),), Reach(frozenset({"session"}), {(): 1}, window=7 * 86_400, session_gap=1800)),
    ],
)
def test_reach_says_columns_events_and_window(features: tuple[Feature, ...], expected: Reach) -> None:
    assert reach(Aggregation(("user_id",), features)) == expected


def test_a_pair_reaches_as_far_as_its_windows_and_sees_the_partners_column() -> None:
    pair = Aggregation(("user_id", "campaign_id"), (count("n", "7d"),))
    assert reach(pair) == Reach(frozenset({"campaign_id", "item_id"}), {(): 1}, window=7 * 86_400)
    assert reach(replace(pair, features=(recency("r"),))).window is None
    assert reach(replace(pair, members="campaign_items")).columns == {"item_id"}


def test_aggregations_together_reach_as_far_as_the_farther() -> None:
    first: Any = Aggregation(("user_id",), (last_n("a", "item_id", 5),))
    second = Aggregation(("user_id",), (last_n("a", "value", 7), count("n", "1d")), session_gap=60)
    assert reach_of([first, second]) == Reach(frozenset({"item_id", "value"}), {(): 7}, window=86_400)
    assert reach_of([]) == Reach()


def test_newest_events_are_counted_behind_the_lag_which_is_kept_whole() -> None:
    late = Aggregation(("user_id",), (last_n("a", "item_id", 5), count("n", "1d")), lag=3600)
    assert reach(late) == Reach(frozenset({"item_id"}), {(): 5}, window=86_400, lag=3600)
    assert reach(replace(late, features=late.features[:1])).window == 3600
