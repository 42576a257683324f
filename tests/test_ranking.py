"""Full rankings and their metrics against a slow and obvious oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import PluginError, UsageError
from zoo.evaluation import ranking as module
from zoo.evaluation.ranking import Ranking, best, comparisons, coverage, holm, of_rows, rank, slices, summary
from zoo.plugin import Array, Catalogue, Column, FeatureBatch


def batch_of(n: int, size: int) -> FeatureBatch:
    """n rows, each with its own number as a column, over a catalogue of ``size`` codes."""
    names = {"item_id": np.array([str(code) for code in range(size)], object)}
    rows = np.arange(n, dtype=np.int32)
    return FeatureBatch({"user": {"row": Column(np.arange(n))}}, {"user": rows}, np.zeros(n), np.zeros(n), Catalogue(names))


def ragged(rows: list[list[int]]) -> Column:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Column(np.array([code for row in rows for code in row], np.int32), offsets, "item_id")


def ranked(scores: Array, target: Array, **options: Any) -> Ranking:
    return rank(lambda batch: scores[batch.column("row").values], batch_of(*scores.shape), target, **options)


def oracle(scores: list[float], target: int, seen: set[int], among: set[int] | None, depth: int) -> tuple[int, list[int]]:
    """Rank and first items of one row: sort everything."""
    items = [code for code in range(2, len(scores)) if code not in seen and (among is None or code in among)]
    pessimistic = sorted(items, key=lambda code: (-scores[code], code == target))
    place = pessimistic.index(target) + 1 if target in items else 0
    first = sorted(items, key=lambda code: (-scores[code], code))[:depth]
    return place, first + [0] * (depth - len(first))


row = st.fixed_dictionaries(
    {
        "scores": st.lists(st.integers(-3, 3), min_size=12, max_size=12),
        "target": st.integers(0, 14),
        "seen": st.lists(st.integers(0, 11), max_size=14),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(row, min_size=1, max_size=9), st.none() | st.sets(st.integers(0, 11)), st.integers(1, 15), st.booleans())
def test_ranks_and_lists_are_those_of_a_full_sort(rows: list[Any], among: Any, depth: int, filtered: bool) -> None:
    scores = np.array([each["scores"] for each in rows], np.float32)
    found = ranked(
        scores,
        np.array([each["target"] for each in rows]),
        seen=ragged([each["seen"] for each in rows]) if filtered else None,
        among=None if among is None else np.array(sorted(among), np.int32),
        depth=depth,
    )
    for at, each in enumerate(rows):
        place, first = oracle(each["scores"], each["target"], set(each["seen"]) if filtered else set(), among, depth)
        assert found.rank[at] == place
        assert found.top[at].tolist() == first
    assert found.items == (10 if among is None else len([code for code in among if code >= 2]))


def test_a_large_catalogue_is_ranked_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    target = np.random.default_rng(1).integers(2, 40, 50)
    whole = ranked(scores, target)
    monkeypatch.setattr(module, "CELLS", 300)
    asked: list[int] = []

    def score(batch: FeatureBatch) -> Array:
        asked.append(len(batch))
        assert len(batch.blocks["user"]["row"]) == len(batch)  # only what the rows need
        return scores[batch.column("row").values]

    parts = rank(score, batch_of(50, 40), target)
    assert max(asked) == 7
    np.testing.assert_array_equal(parts.rank, whole.rank)
    np.testing.assert_array_equal(parts.top, whole.top)


def test_a_model_that_scores_all_alike_gets_nothing() -> None:
    found = ranked(np.zeros((3, 22), np.float32), np.array([2, 11, 21]))
    assert found.rank.tolist() == [20, 20, 20]
    assert of_rows(found)["hr@10"].sum() == 0


@pytest.mark.parametrize("bad", [np.zeros((2, 5), np.float32), np.full((2, 6), np.nan, np.float32)])
def test_scores_that_rank_nothing_are_refused(bad: Array) -> None:
    with pytest.raises(PluginError, match=r"expected \(2, 6\) numbers"):
        rank(lambda batch: bad, batch_of(2, 6), np.array([2, 3]))


def test_metrics_are_their_definitions() -> None:
    rng = np.random.default_rng(2)
    ranking = Ranking(rng.integers(0, 30, 200).astype(np.int32), rng.integers(2, 50, (200, 20)).astype(np.int32), 48)
    ranking.top[:50, 12:] = 0
    counts = rng.integers(0, 9, 50).astype(float)
    found = of_rows(ranking, popularity=counts)
    total = sum(counts[2:]) + 48
    for at in range(200):
        place = int(ranking.rank[at])
        for k in (1, 5, 10, 20):
            hit = 0 < place <= k
            assert found[f"hr@{k}"][at] == float(hit)
            assert found[f"ndcg@{k}"][at] == (pytest.approx(1 / math.log2(place + 1)) if hit else 0)
            assert found[f"mrr@{k}"][at] == (pytest.approx(1 / place) if hit else 0)
            listed = [code for code in ranking.top[at, :k].tolist() if code]
            surprise = sum(-math.log2((counts[code] + 1) / total) for code in listed) / len(listed)
            assert found[f"novelty@{k}"][at] == pytest.approx(surprise)
    covered = {code for line in ranking.top[:, :5].tolist() for code in line if code}
    assert coverage(ranking)["coverage@5"] == pytest.approx(len(covered) / 48)


def test_intervals_hold_the_mean_and_draw_users_whole() -> None:
    rng = np.random.default_rng(3)
    places = np.repeat(rng.integers(1, 20, 40), 25).astype(np.int32)  # every user's 25 rows alike
    ranking = Ranking(places, np.full((1000, 20), 2, np.int32), 30)
    alone = summary(ranking)["hr@10"]
    by_user = summary(ranking, users=np.repeat(np.arange(40), 25))["hr@10"]
    assert alone.value == by_user.value == pytest.approx((places <= 10).mean())
    assert by_user.low < by_user.value < by_user.high
    assert by_user.high - by_user.low > 3 * (alone.high - alone.low)
    deviation = np.sqrt((places <= 10).mean() * (places > 10).mean() / 40)
    assert by_user.high - by_user.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_a_slice_is_summed_up_by_itself_and_an_empty_one_is_no_number() -> None:
    ranking = Ranking(np.array([1, 1, 0, 40], np.int32), np.full((4, 20), 2, np.int32), 30)
    assert summary(ranking, rows=np.array([True, True, False, False]))["mrr@1"].value == 1
    assert math.isnan(summary(ranking, rows=np.zeros(4, bool))["mrr@1"].value)


def test_slices_part_rows_by_history_and_by_the_targets_popularity() -> None:
    popularity = np.array([0, 0, 30, 25, 20, 10, 5, 5, 5, 0], float)  # 100 events: thirds end at 33.3 and 66.7
    lengths = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8])
    target = np.array([2, 3, 4, 5, 6, 7, 8, 9, 1, 99])
    found = {name: np.flatnonzero(rows).tolist() for name, rows in slices(lengths, target, popularity).items()}
    assert found["cold users"] == [0]
    assert [found[f"{name} histories"] for name in ("shortest", "second", "third", "longest")] == [
        [1, 2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
    ]
    assert found["head items"] == [0, 1]
    assert found["middle items"] == [2]
    assert found["tail items"] == [3, 4, 5, 6]
    assert found["cold items"] == [7, 8, 9]


def test_the_paired_test_is_scipys_and_holm_is_by_hand() -> None:
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(4)
    users = np.repeat(np.arange(100), 3)
    rankings = {
        name: Ranking(rng.integers(1, high, 300).astype(np.int32), np.zeros((300, 20), np.int32), 60)
        for name, high in (("good", 20), ("fair", 24), ("poor", 60))
    }
    found = {(each.a, each.b): each for each in comparisons(rankings, users=users)}
    assert set(found) == {("good", "fair"), ("good", "poor"), ("fair", "poor")}
    means = {name: of_rows(each)["ndcg@10"].reshape(100, 3).mean(axis=1) for name, each in rankings.items()}
    for (a, b), each in found.items():
        expected = ttest_rel(means[a], means[b])
        assert each.p_value == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval()
        assert (each.low, each.high) == pytest.approx((interval.low, interval.high))
        assert each.value == pytest.approx((means[a] - means[b]).mean())
        assert each.p_holm >= each.p_value
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    only = comparisons(rankings, against="good", users=users)
    assert [(each.a, each.b) for each in only] == [("fair", "good"), ("poor", "good")]
    same = comparisons({"one": rankings["good"], "two": rankings["good"]})
    assert (same[0].value, same[0].p_value, same[0].p_holm) == (0, 1, 1)


def test_what_cannot_be_compared_is_named() -> None:
    one = Ranking(np.array([1], np.int32), np.zeros((1, 20), np.int32), 3)
    with pytest.raises(UsageError, match="unknown model 'c'; choose one of: a, b"):
        comparisons({"a": one, "b": one}, against="c")
    with pytest.raises(UsageError, match="unknown metric of a comparison 'auc'"):
        comparisons({"a": one, "b": one}, metric="auc")
    with pytest.raises(UsageError, match="a metric at 50 of lists of 20 items; expected 1 to 20"):
        of_rows(one, [50])
    with pytest.raises(UsageError, match="different numbers of rows"):
        comparisons({"a": one, "b": Ranking(np.array([1, 2], np.int32), np.zeros((2, 20), np.int32), 3)})


def test_the_first_items_of_tied_scores_are_those_of_smallest_code() -> None:
    assert best(np.array([[5.0, 1, 5, 5, 7, 1]]), 3).tolist() == [[4, 0, 2]]
    assert best(np.array([[-np.inf, 1.0]]), 4).tolist() == [[1, 0, 0, 0]]
    rng = np.random.default_rng(3)
    for kept in (1.0, 0.6, 0.2, 0.02, 0.0):  # of the columns that may be listed
        scores = np.where(rng.random((5, 200)) < kept, rng.integers(0, 6, (5, 200)), -np.inf).astype(np.float32)
        for depth in (1, 20, 250):
            order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            expected = np.where(np.take_along_axis(scores, order, axis=1) == -np.inf, 0, order)
            expected = np.pad(expected, ((0, 0), (0, depth - expected.shape[1])))
            np.testing.assert_array_equal(best(scores, depth), expected)
            np.testing.assert_array_equal(best(scores, depth, np.sort(scores, axis=1)), expected)
            alone = [best(row[None], depth, np.sort(row)[None]) for row in scores]  # a way of its own
            np.testing.assert_array_equal(np.concatenate(alone), expected)
