"""Members that rank the catalogue: their rank average, the lists they answer with, and what is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from zoo import recommender as module
from zoo.candidates import ItemCounts, Stage, average_ranks, in_order
from zoo.errors import ArtefactError, UsageError
from zoo.evaluation.ranking import of_rows
from zoo.fitting import Member, PluginSource
from zoo.plugin import UNKNOWN, Array, Artefact, Catalogue, FeatureBatch, TrainingData
from zoo.recommender import Recommender, cold, fit_recommender, ranked, second_stage
from zoo.reranking import rank_average
from zoo.testing import Echo, Follower, toy
from zoo.vocabulary import Vocabulary

SOURCE = PluginSource(extra=(Follower(), Echo()))
MEMBERS = [Member("firm", "follower", {"smoothing": 50.0}), Member("loose", "follower", {"smoothing": 0.5})]


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return toy(300, 1, "ranking")


@pytest.fixture(scope="module")
def both(data: TrainingData) -> Recommender:
    return fit_recommender(MEMBERS, data, source=SOURCE)


def test_the_rank_average_is_the_mean_of_ranks_ties_shared() -> None:
    one, other = np.array([[0.1, 0.4, 0.4, 0.9]], np.float32), np.array([[4.0, 3.0, 2.0, 1.0]], np.float32)
    hidden = np.zeros((1, 4), bool)
    stage = Stage(toy(1).batch, hidden, {"one": one, "other": other})
    assert rank_average(stage.ranks).tolist() == [[-2.5, -2.25, -2.75, -2.5]]
    hidden[0, 3] = True
    stage = Stage(toy(1).batch, hidden, {"one": one, "other": other})
    assert rank_average(stage.ranks).tolist() == [[-2.0, -1.75, -2.25, -np.inf]]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.sampled_from([3, 1_000_000]))
def test_a_row_that_differs_little_from_another_is_put_in_order_by_what_changed(seed: int, changes: int, values: int) -> None:
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> Array:
        return np.where(rng.random(count) < 0.2, -np.inf, rng.integers(0, values, count)).astype(np.float32)

    known = drawn(160)
    row = known.copy()
    row[rng.choice(160, changes, replace=False)] = drawn(changes)
    for before in (None, (known, np.sort(known)), (known[:9], np.sort(known[:9]))):
        np.testing.assert_array_equal(in_order(row, before), np.sort(row))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 1_000),
    st.sampled_from([0.4, 0.6, 0.95, 1.0]),
    st.sampled_from([-1.0, 0.0, 2.0, np.inf]),
)
def test_a_row_of_which_most_values_are_one_is_put_in_order_without_it(seed: int, size: int, share: float, usual: float) -> None:
    rng = np.random.default_rng(seed)
    row = np.where(rng.random(size) < share, -usual, rng.integers(-3, 4, size)).astype(np.float32)
    row[rng.random(size) < 0.05] = -np.inf
    np.testing.assert_array_equal(in_order(row, None), np.sort(row))


def test_members_and_their_average_rank_the_same_rows(data: TrainingData, both: Recommender) -> None:
    held_out = toy(200, 2, "ranking")
    found = both.rankings(held_out, exclude_seen=False)
    assert list(found) == ["firm", "loose", "mean"]
    batch = both.seen(held_out.batch)
    [stage] = both.stages(batch, exclude_seen=False)
    average = rank_average(stage.ranks)[:, 2:]
    warm = ~cold(batch)
    np.testing.assert_array_equal(both.score_items(batch)[warm, 2:], average[warm])
    target = both.vocabulary.target(held_out).astype(int)
    own = average[np.arange(200), target - 2]
    np.testing.assert_array_equal(found["mean"].rank[warm], (average >= own[:, None]).sum(axis=1)[warm])
    assert all(of_rows(each)["hr@10"].mean() > 0.5 for each in found.values())
    alone = fit_recommender(MEMBERS[:1], data, source=SOURCE)
    assert list(alone.rankings(held_out)) == ["firm"]
    np.testing.assert_array_equal(alone.score_items(batch)[warm, 2:], stage.scores["firm"][warm, 2:])


def test_codes_are_those_of_the_log_outside_and_of_training_inside(data: TrainingData) -> None:
    shifted = np.where(data.target > 16, data.target, 2.0)  # few items only are ever taken
    column = data.batch.stored("items")[1]
    rare = replace(column, values=np.where(column.values > 16, column.values, UNKNOWN).astype(np.int32))
    blocks = {**data.batch.blocks, "user": {**data.batch.blocks["user"], "items": rare}}
    few = replace(data, batch=replace(data.batch, blocks=blocks).select(["items"]), target=shifted)
    recommender = fit_recommender(MEMBERS[:1], few, source=SOURCE)
    assert recommender.vocabulary.kept["item_id"].tolist() == [2, *range(17, 32)]
    lists = recommender.lists(few.batch, 30, exclude_seen=False)
    assert set(lists.items.ravel().tolist()) == {0, 2, *range(17, 32)}
    assert (lists.items[:, 16:] == 0).all()


def test_lists_leave_out_what_was_seen_and_what_is_not_asked_for(data: TrainingData, both: Recommender) -> None:
    batch = toy(50, 3, "ranking").batch
    among = np.arange(5, 25, dtype=np.int32)
    free, limited = both.lists(batch, 6, exclude_seen=False), both.lists(batch, 6, exclude_seen=True, among=among)
    seen = batch.column("items")
    scores = both.score_items(both.seen(batch))
    unseen = np.concatenate([rank_average(stage.ranks) for stage in both.stages(both.seen(batch), exclude_seen=True)])
    [stage] = both.stages(both.seen(batch), exclude_seen=False)
    ranks = [np.argsort(np.argsort(-each[:, 2:], axis=1), axis=1) + 1 for each in stage.scores.values()]
    log = both.vocabulary.log_codes("item_id", np.arange(scores.shape[1]))
    inside = {int(code): at for at, code in enumerate(log)}
    for row in range(50):
        past = set(seen.take(np.array([row])).values.tolist())
        listed = [code for code in limited.items[row].tolist() if code]
        assert set(listed) <= set(among.tolist()) - past
        if free.cold[row]:
            continue
        expected = sorted(log[2:].tolist(), key=lambda code: (-scores[row, inside[code]], code))[:6]
        assert free.items[row].tolist() == expected
        order = sorted(set(among.tolist()) - past, key=lambda code: (-unseen[row, inside[code]], code))
        assert listed == order[:6]
        for member in range(2):
            assert free.ranks[member, row].tolist() == [int(ranks[member][row, inside[code] - 2]) for code in expected]


def test_a_row_that_training_knows_nothing_of_is_answered_by_popularity_and_marked(both: Recommender) -> None:
    batch = toy(50, 3, "ranking").batch
    lists = both.lists(batch, 5)
    known = batch.column("items")
    some = np.bincount(np.repeat(np.arange(50), known.lengths), known.values > UNKNOWN, minlength=50) > 0
    np.testing.assert_array_equal(lists.cold, ~some)
    assert lists.cold.any()
    popular = np.argsort(-both.popularity, kind="stable")[:5]
    assert (lists.items[lists.cold] == both.vocabulary.log_codes("item_id", popular)).all()
    assert (np.diff(lists.score[lists.cold]) <= 0).all()


@pytest.mark.parametrize("members", [MEMBERS, MEMBERS[:1]])
def test_figures_are_of_what_is_answered(data: TrainingData, members: list[Member]) -> None:
    held_out = toy(80, 3, "ranking")
    recommender = fit_recommender(members, data, source=SOURCE)
    if len(members) > 1:
        recommender, choice = second_stage(recommender, toy(200, 4, "ranking"), final="blend", source=SOURCE)
        assert choice.reranker.chosen == "blend"
    lists = recommender.lists(held_out.batch, 20, exclude_seen=False)
    assert 0 < lists.cold.sum() < len(held_out)
    answer = list(recommender.rankings(held_out, exclude_seen=False).values())[-1]
    codes = recommender.known(held_out.batch.catalogue).log_codes("item_id", answer.top)
    np.testing.assert_array_equal(codes, lists.items)


def test_the_second_stage_learns_nothing_of_rows_that_popularity_answers(both: Recommender) -> None:
    rows = toy(200, 4, "ranking")
    blind = cold(both.seen(rows.batch))
    assert 0 < blind.sum() < len(rows)
    users = np.arange(len(rows))
    chosen = [
        second_stage(both, each, users=own, source=SOURCE)[1]
        for each, own in ((rows, users), (rows.take(np.flatnonzero(~blind)), users[~blind]))
    ]
    assert chosen[0].record["ndcg@10"] == chosen[1].record["ndcg@10"]
    assert second_stage(both, rows.take(np.flatnonzero(blind)), source=SOURCE)[1].record == {}


def test_more_items_than_there_are_take_no_more_room(both: Recommender) -> None:
    batch = toy(5, 3, "ranking").batch
    lists = both.lists(batch, 10**12, exclude_seen=False)
    assert lists.items.shape[1] == both.vocabulary.size("item_id")


def test_many_rows_are_answered_a_few_at_a_time(both: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = toy(50, 3, "ranking").batch
    whole = both.lists(batch, 5)
    monkeypatch.setattr(module, "CELLS", 200)
    parts = both.lists(batch, 5)
    for name in ("items", "score", "ranks", "cold"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert both.lists(batch.take(np.zeros(0, np.int64)), 5).ranks.shape == (2, 0, 5)


def test_popularity_counts_histories_and_targets(data: TrainingData) -> None:
    vocabulary = Vocabulary.of(data)
    counts = ItemCounts.of(data, vocabulary).popularity
    log = vocabulary.log_codes("item_id", np.arange(len(counts)))
    values = data.batch.column("items").values
    for code in range(2, len(counts)):
        assert counts[code] == (values == log[code]).sum() + (data.target == log[code]).sum()
    assert counts[:2].tolist() == [0, 0]


@dataclass(frozen=True)
class FittedByName:
    """Scores an item by the length of its title: it needs no training, and says nothing of items without one."""

    def scorable(self, catalogue: Catalogue) -> Array:
        return np.array([len(name) > 1 for name in catalogue.names["item_id"]])

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        lengths = np.array([len(name) for name in batch.catalogue.names["item_id"]], np.float32)
        # what a history holds of items that training did not see is told apart from what is unknown
        past = batch.column("items")
        fresh = np.bincount(np.repeat(np.arange(len(batch)), past.lengths), past.values >= 30, minlength=len(batch))
        scores: Array = (lengths + 100 * fresh[:, None].astype(np.float32)).astype(np.float32)
        return scores if items is None else scores[:, items]

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        return Artefact()


class ByName(Follower):
    def __init__(self) -> None:
        super().__init__("by_name")

    def fit(self, data: TrainingData, **how: Any) -> FittedByName:  # type: ignore[override]
        return FittedByName()

    def load(self, artefact: Artefact) -> FittedByName:  # type: ignore[override]
        return FittedByName()


def test_items_that_training_did_not_hold_are_listed_where_a_member_scores_them(data: TrainingData) -> None:
    cold = [9, 20]
    column = data.batch.stored("items")[1]
    kept = replace(column, values=np.where(np.isin(column.values, cold), UNKNOWN, column.values).astype(np.int32))
    blocks = {"user": {"items": kept}}
    catalogue = data.batch.catalogue
    names = {**catalogue.names, "item_id": catalogue.names["item_id"].copy()}
    names["item_id"][20], names["item_id"][9] = "", "the longest of all the titles"
    batch = replace(data.batch, catalogue=replace(catalogue, names=names)).select(["items"])
    target = np.where(np.isin(data.target, cold), 0.0, data.target)
    training = replace(data, batch=replace(batch, blocks=blocks), target=target)
    source = PluginSource(extra=(Follower(), ByName()))
    both = fit_recommender([Member("by_name", "by_name"), Member("follower", "follower")], training, source=source)
    seen = both.seen(batch)
    assert seen.catalogue.size("item_id") == both.vocabulary.size("item_id") + 1
    by_name, follower = (both.scores_of(member, seen) for member in both.members)
    known = follower[:, 2:-1]
    assert (follower[:, -1] < known.min(axis=1)).all()
    past = batch.column("items")
    met = np.bincount(np.repeat(np.arange(len(batch)), past.lengths), past.values == 9, minlength=len(batch)) > 0
    assert ((by_name[:, 2] >= 100) == met).all()
    lists = both.lists(batch, 30, exclude_seen=False)
    assert set(lists.items[~lists.cold][:, 0].tolist()) <= set(range(2, 32)) - {20}
    assert (lists.items[~lists.cold] == 9).any(axis=1).all()
    assert (lists.items != 20).all()
    alone = fit_recommender([Member("by_name", "by_name")], training, source=source)
    asked = replace(data, batch=batch, target=np.full(len(data), 9.0))
    assert (alone.rankings(asked, exclude_seen=False)["by_name"].rank[~lists.cold] == 1).all()
    record, ranks = ranked(both, asked, None, np.arange(len(asked)), exclude_seen=False)
    assert record["slices"]["cold items"]["rows"] == len(asked)
    assert (ranks["by_name"] == 1).all()


def test_a_row_asks_again_only_for_an_item_of_its_own_history(data: TrainingData) -> None:
    """Among items that training did not hold, too, which are one and the same to the members."""
    column = data.batch.stored("items")[1]
    kept = replace(column, values=np.where(np.isin(column.values, [9, 20]), UNKNOWN, column.values).astype(np.int32))
    batch, target = data.batch.select(["items"]), np.where(np.isin(data.target, [9, 20]), 0.0, data.target)
    training = replace(data, batch=replace(batch, blocks={"user": {"items": kept}}), target=target)
    recommender = fit_recommender(MEMBERS[:1], training, source=SOURCE)
    asked = replace(data, batch=batch, target=np.full(len(data), 20.0))
    record, _ = ranked(recommender, asked, None, np.arange(len(asked)), exclude_seen=False)
    past = batch.column("items")
    share = np.mean([20 in past.take(np.array([row])).values for row in range(len(data))])
    assert 0 < share < 1
    assert record["seen_before"] == pytest.approx(share)


def test_what_is_stored_answers_the_same(both: Recommender) -> None:
    loaded = Recommender.load(both.save(), SOURCE.load())
    batch = toy(40, 4, "ranking").batch
    one, other = loaded.lists(batch, 5), both.lists(batch, 5)
    for name in ("items", "score", "ranks", "cold"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    with pytest.raises(ArtefactError, match="not a recommender"):
        Recommender.load(Artefact(), SOURCE.load())


def test_what_cannot_be_meant_is_named(data: TrainingData, both: Recommender) -> None:
    with pytest.raises(UsageError, match="echo predicts binary, multiclass, relevance, value; the task is ranking"):
        fit_recommender([Member("echo", "echo")], data, source=SOURCE)
    with pytest.raises(UsageError, match="a recommender ranks the catalogue; the target is binary"):
        fit_recommender(MEMBERS, toy(20), source=SOURCE)
    with pytest.raises(UsageError, match="from the column 'items', which the feature service lacks; it has: user_recency"):
        both.lists(data.batch.select(["user_recency"]), 5)


def test_average_ranks_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 50), (20, 7), (0, 5)):
        values = rng.normal(size=shape).astype(np.float32).round(1)
        values[rng.random(shape) < 0.2] = np.inf
        np.testing.assert_array_equal(average_ranks(values), rankdata(values, axis=1).astype(np.float32))


def test_ranks_of_some_items_are_those_of_all_of_them() -> None:
    rng = np.random.default_rng(1)
    scores = {name: rng.normal(size=(6, 80)).astype(np.float32).round(1) for name in ("one", "other")}
    scores["other"][2] = 0.0  # a member that knows nothing
    hidden = rng.random((6, 80)) < 0.3
    stage = Stage(toy(6).batch, hidden, scores)
    row, items = np.nonzero(~hidden & (rng.random((6, 80)) < 0.3) & (np.arange(6) != 4)[:, None])
    for name, each in scores.items():
        np.testing.assert_array_equal(stage.ranks_of(name, row, items), stage.ranks[name][row, items])
        asked = rng.integers(0, 80, (6, 9))
        shown = np.where(hidden, -np.inf, each)
        own = np.take_along_axis(shown, asked, axis=1)
        np.testing.assert_array_equal(stage.ahead(name, asked), (shown[:, None] > own[:, :, None]).sum(axis=2))
    assert stage.ranks_of("one", row[:0], items[:0]).shape == (0,)
