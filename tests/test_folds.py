from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import UsageError
from zoo.folds import forward_chaining
from zoo.manager import installed, plugins
from zoo.plugin import FeatureBatch, TrainingData

DAY = 86_400_000_000


def cuts(count: int, rows: int = 10) -> np.ndarray:
    return np.repeat(np.arange(count) * 14 * DAY, rows)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(-2, 12)), min_size=1, max_size=60),
    st.integers(1, 6),
)
def test_a_fold_trains_only_on_labels_known_before_it_begins_and_scores_each_row_once(rows, count):
    time = np.array([t for t, _ in rows], np.int64)
    known_at = time + np.array([delay for _, delay in rows], np.int64)
    try:
        folds = forward_chaining(time, known_at, count)
    except UsageError:
        trainable = [t for t in np.unique(time) if ((time < t) & (known_at <= t)).any()]
        from_first = int((np.unique(time) >= trainable[0]).sum()) if trainable else 0
        assert from_first < count
        return
    assert len(folds) == count
    scored_rows = np.concatenate([scored for _, scored in folds])
    assert len(np.unique(scored_rows)) == len(scored_rows)
    for train, scored in folds:
        begin = time[scored].min()
        assert len(train)
        assert len(scored)
        assert (time[train] < begin).all()
        assert (known_at[train] <= begin).all()
        assert set(train.tolist()) == set(np.flatnonzero((time < begin) & (known_at <= begin)).tolist())
    for (_, earlier), (_, later) in pairwise(folds):
        assert time[earlier].max() < time[later].min()
    first = time[folds[0][1]].min()
    assert set(scored_rows.tolist()) == set(np.flatnonzero(time >= first).tolist())


def test_twelve_cuts_leave_a_third_to_the_first_model_and_score_two_cuts_a_fold():
    time = cuts(12)
    folds = forward_chaining(time, time + 14 * DAY, 4)
    assert [len(train) for train, _ in folds] == [40, 60, 80, 100]
    assert [len(scored) for _, scored in folds] == [20, 20, 20, 20]


def test_labels_that_become_known_late_push_the_first_block_out():
    time = cuts(12)
    (train, scored), *_ = forward_chaining(time, time + 4 * 14 * DAY, 2)
    assert len(train) == 40
    assert time[scored].min() == 7 * 14 * DAY


def test_rows_may_come_in_any_order():
    time = np.random.default_rng(0).permutation(cuts(12))
    folds = forward_chaining(time, time + 14 * DAY, 4)
    assert [len(train) for train, _ in folds] == [40, 60, 80, 100]


def test_blocks_hold_about_as_many_rows_each_when_instants_differ_in_size():
    time = np.repeat(np.arange(40) * DAY, np.arange(1, 41))
    folds = forward_chaining(time, time, 4)
    sizes = [len(scored) for _, scored in folds]
    assert max(abs(size - sum(sizes) / 4) for size in sizes) <= 40  # the largest instant


def test_too_few_instants_say_how_many_there_are_and_how_many_are_needed():
    time = cuts(3)
    with pytest.raises(UsageError, match=r"4 forward-chaining folds need 4 instants after .* 3 distinct instants, 2 of them"):
        forward_chaining(time, time + 14 * DAY, 4)


def test_labels_never_known_in_time_are_refused():
    time = cuts(6)
    with pytest.raises(UsageError, match="6 distinct instants, 0 of them"):
        forward_chaining(time, np.full(len(time), 10_000 * DAY), 1)


@pytest.mark.parametrize(("count", "extra", "words"), [(0, 0, "0 folds"), (2, 1, "61 known_at")])
def test_misuse_is_named(count, extra, words):
    time = cuts(6)
    with pytest.raises(UsageError, match=words):
        forward_chaining(time, np.zeros(len(time) + extra, np.int64), count)


def test_the_default_hook_gives_forward_chaining_folds():
    time = cuts(6)
    data = TrainingData(FeatureBatch({}, {}, time, time), np.zeros(60), np.ones(60), time)
    others = [plugin.name for plugin in installed() if plugin.distribution != "feature-zoo"]
    found = plugins(others).folds(data, time + 14 * DAY, 3, seed=0)
    for (a, b), (c, d) in zip(found, forward_chaining(time, time + 14 * DAY, 3), strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
