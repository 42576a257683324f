"""The second stage: candidates and what is known of them, final models that order them, and the choice on rows not fitted on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from zoo_gbdt import GBDT

from zoo.blend import Blend, FittedBlend
from zoo.candidates import Candidates, ItemCounts
from zoo.errors import ArtefactError, UsageError
from zoo.evaluation.ranking import of_rows
from zoo.fitting import Member, PluginSource
from zoo.plugin import Array, Artefact, Catalogue, Column, FeatureBatch, PluginError, Target, TrainingData
from zoo.recommender import Recommender, fit_recommender, ranked, second_stage
from zoo.reranking import MEAN, STACK, Reranker, Survey, choose, order
from zoo.testing import Follower, contract, toy
from zoo.testing.follower import FittedFollower

test_blend_contract = contract(Blend())

SOURCE = PluginSource(extra=(Follower(),))
MEMBERS = [Member("follower", "follower", {"smoothing": 1.0}), Member("popular", "popularity")]
SMALL = {"gbdt": {"num_trees": 30, "min_data_in_leaf": 10}}
DAY = 86_400.0


def shop(rows: int, seed: int, items: int = 60) -> TrainingData:
    """Half the users walk round the shelves, half take again what they took: one member is good at each, and knows not whom it has."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, rows)
    walks = np.arange(rows) % 2 == 0
    histories, targets = [], []
    for row in range(rows):
        if walks[row]:
            path = (rng.integers(0, items) + np.arange(lengths[row] + 1)) % items + 2
        else:
            path = rng.choice(np.arange(2, items + 2), 3, p=_share(items))[rng.integers(0, 3, lengths[row] + 1)]
        histories.append(path[:-1])
        targets.append(path[-1])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.concatenate(histories).astype(np.int32)
    ages = np.concatenate([np.arange(n, 0, -1) * DAY for n in lengths])
    block = {"items": Column(values, offsets, "item_id"), "ages": Column(ages, offsets)}
    names = np.array(["", "?", *(f"item {at}" for at in range(items))], object)
    category = Column(np.r_[0, 1, np.arange(items) % 5 + 2].astype(np.int32), dictionary="items.category")
    price = Column(np.r_[np.nan, np.nan, 1.0 + np.arange(items)])
    catalogue = Catalogue(
        {"item_id": names, "items.category": np.array(["", "?", *"abcde"], object)}, {"category": category, "price": price}
    )
    as_of = np.full(rows, 1_700_000_000_000_000)
    batch = FeatureBatch({"user": block}, {"user": np.arange(rows, dtype=np.int32)}, as_of, as_of, catalogue)
    return TrainingData(batch, np.array(targets, np.float64), np.ones(rows), as_of, Target("ranking"))


def _share(items: int) -> np.ndarray:
    share = 1.0 / np.arange(1, items + 1)
    return share / share.sum()


@pytest.fixture(scope="module")
def members() -> Recommender:
    return fit_recommender(MEMBERS, shop(400, 1), source=SOURCE)


def candidates(recommender: Recommender, data: TrainingData, depth: int) -> Candidates:
    [stage] = recommender.stages(recommender.seen(data.batch), exclude_seen=False)
    return Candidates.of(stage, depth, recommender.counts)


def test_candidates_are_the_union_of_the_members_first_items_with_what_a_loop_finds(members: Recommender) -> None:
    data = shop(8, 2)
    found = candidates(members, data, 4)
    batch = members.seen(data.batch)
    [stage] = members.stages(batch, exclude_seen=False)
    training = members.seen(shop(400, 1).batch)
    goals = members.vocabulary.target(shop(400, 1)).astype(int)
    walks = [[*training.column("items").take(np.array([row])).values.tolist(), goals[row]] for row in range(400)]
    price, category = batch.catalogue.items["price"].values, batch.catalogue.items["category"].values
    columns = {name: found.batch.column(name).values for name in found.batch.names}
    for row in range(8):
        history = batch.column("items").take(np.array([row])).values
        firsts = [np.argsort(-each[row, 2:], kind="stable")[:4] + 2 for each in stage.scores.values()]
        begin, end = found.offsets[row], found.offsets[row + 1]
        assert found.items[begin:end].tolist() == sorted(set(np.concatenate(firsts).tolist()))
        for name, each in stage.scores.items():
            own = each[row, found.items[begin:end]].astype(np.float64)
            z = (own - own.mean()) / (own.std() or 1.0)
            np.testing.assert_allclose(columns[f"score:{name}"][begin:end], z, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(columns[f"margin:{name}"][begin:end], z.max() - z, rtol=1e-4, atol=1e-5)
            place = [
                1 + (each[row, 2:] > s).sum() + ((each[row, 2:] == s).sum() - 1) / 2 for s in each[row, found.items[begin:end]]
            ]
            np.testing.assert_allclose(columns[f"rank:{name}"][begin:end], np.log(place), rtol=1e-6)
        for at in range(begin, end):
            item = found.items[at]
            assert columns["listed"][at] == sum(item in first for first in firsts)
            assert columns["popularity"][at] == pytest.approx(math.log1p(sum(walk.count(item) for walk in walks)), rel=1e-6)
            after = [sum(a == old and b == item for walk in walks for a, b in pairwise(walk)) for old in history[-5:]]
            assert columns["follows"][at] == pytest.approx(math.log1p(after[-1]), rel=1e-6)
            assert columns["follows_lately"][at] == pytest.approx(math.log1p(sum(after)), rel=1e-6)
            there = np.flatnonzero(history == item)
            assert columns["own"][at] == pytest.approx(math.log1p(len(there)), rel=1e-6)
            if len(there):
                assert columns["own_back"][at] == pytest.approx(math.log(len(history) - there[-1]), rel=1e-6)
                assert columns["own_age"][at] == pytest.approx(math.log1p((len(history) - there[-1]) * DAY), rel=1e-6)
            else:
                assert np.isnan([columns["own_back"][at], columns["own_age"][at]]).all()
            newest = history[-10:]
            assert columns["same:category"][at] == pytest.approx(np.mean(category[newest] == category[item]), rel=1e-6)
            apart = math.log1p(price[item]) - np.log1p(price[newest]).mean()
            assert columns["apart:price"][at] == pytest.approx(apart, rel=1e-4, abs=1e-5)
        assert (columns["events"][begin:end] == np.float32(np.log1p(len(history)))).all()


@dataclass(frozen=True)
class FittedReader(FittedFollower):
    """A follower with vectors of items: a length and a direction by category, none for items without a price above 3."""

    asked: list[Catalogue] = field(default_factory=list)

    def scorable(self, catalogue: Catalogue) -> Array:
        return catalogue.items["price"].values > 3.0

    def item_vectors(self, catalogue: Catalogue) -> Array:
        self.asked.append(catalogue)
        code = catalogue.items["category"].values
        vectors = np.stack([np.cos(code), np.sin(code)], axis=1) * (1.0 + np.arange(len(code)))[:, None]
        return np.where(self.scorable(catalogue)[:, None], vectors, np.nan).astype(np.float32)


class Reader(Follower):
    def __init__(self) -> None:
        super().__init__("reader")

    def fit(self, data: TrainingData, **how: Any) -> FittedReader:  # type: ignore[override]
        fitted = super().fit(data, **how)
        assert isinstance(fitted, FittedFollower)
        return FittedReader(fitted.followed)

    def load(self, artefact: Artefact) -> FittedReader:  # type: ignore[override]
        return FittedReader(artefact.arrays["followed"])


def test_a_candidate_is_as_like_the_newest_items_as_their_vectors_are() -> None:
    source = PluginSource(extra=(Reader(),))
    recommender = fit_recommender([Member("texts", "reader"), MEMBERS[1]], shop(200, 1), source=source)
    data = shop(8, 2)
    found = candidates(recommender, data, 20)
    again = candidates(recommender, data, 20)
    batch = recommender.seen(data.batch)
    fitted = recommender.members[0].fitted
    assert isinstance(fitted, FittedReader)
    assert fitted.asked == [batch.catalogue]  # once for all requests
    vectors = fitted.item_vectors(batch.catalogue)
    able = fitted.scorable(batch.catalogue)
    told = found.batch.column("like:texts").values
    np.testing.assert_array_equal(told, again.batch.column("like:texts").values)
    assert not any(name.startswith("like:") and name != "like:texts" for name in found.batch.names)
    seen = 0
    for at, (row, item) in enumerate(zip(found.rows, found.items, strict=True)):
        newest = [old for old in batch.column("items").take(np.array([row])).values[-10:] if able[old]]
        if not (able[item] and newest):
            assert np.isnan(told[at])
            continue
        mean = np.mean([vectors[old] / np.linalg.norm(vectors[old]) for old in newest], axis=0)
        cosine = vectors[item] @ mean / np.linalg.norm(vectors[item]) / np.linalg.norm(mean)
        assert told[at] == pytest.approx(cosine, abs=1e-5)
        seen += 1
    assert 0 < seen < len(told)
    alone = recommender.stages(batch.take(np.array([3])), exclude_seen=False)
    own = Candidates.of(next(iter(alone)), 20, recommender.counts).batch.column("like:texts").values
    np.testing.assert_array_equal(own, told[found.rows == 3])


def test_vectors_of_another_shape_are_refused_by_name() -> None:
    source = PluginSource(extra=(Reader(),))
    recommender = fit_recommender([Member("texts", "reader"), MEMBERS[1]], shop(60, 1), source=source)
    cut = replace(recommender.members[0].fitted, followed=recommender.members[0].fitted.followed)
    object.__setattr__(cut, "item_vectors", lambda catalogue: np.zeros((3, 2), np.float32))
    broken = replace(recommender, members=(replace(recommender.members[0], fitted=cut), recommender.members[1]))
    with pytest.raises(PluginError, match=r"texts gave item vectors of shape \(3, 2\); expected \(62, d\) finite numbers"):
        candidates(broken, shop(8, 2), 4)


def typed(data: TrainingData, names: list[str]) -> TrainingData:
    """Events of these types in turn."""
    column = data.batch.column("items")
    kinds = Column((np.arange(len(column.values)) % len(names) + 2).astype(np.int32), column.offsets, "event_type")
    dictionaries = {**data.batch.catalogue.names, "event_type": np.array(["", "?", *names], object)}
    blocks = {"user": {**data.batch.blocks["user"], "event_types": kinds}}
    return replace(data, batch=replace(data.batch, blocks=blocks, catalogue=replace(data.batch.catalogue, names=dictionaries)))


@pytest.mark.parametrize("names", [["view", "cart"], ["view"]])
def test_a_candidate_knows_what_the_user_did_with_it_where_there_are_several_types(names: list[str]) -> None:
    data = typed(shop(8, 2), names)
    recommender = fit_recommender(MEMBERS, typed(shop(60, 1), names), source=SOURCE)
    found = candidates(recommender, data, 4)
    told = {name.removeprefix("own:") for name in found.batch.names if name.startswith("own:")}
    assert told == (set(names) if len(names) > 1 else set())
    batch = recommender.seen(data.batch)
    history, kinds = batch.column("items"), batch.column("event_types").values
    assert history.offsets is not None
    for kind in told:
        its = kinds == names.index(kind) + 2
        spans = zip(found.items, history.offsets[found.rows], history.offsets[found.rows + 1])
        own = [(its & (history.values == item))[begin:end].sum() for item, begin, end in spans]
        assert sum(own) > 0
        np.testing.assert_allclose(found.batch.column(f"own:{kind}").values, np.log1p(own), rtol=1e-6)


def test_candidates_of_some_rows_are_those_of_all(members: Recommender) -> None:
    data = shop(30, 2)
    whole, rows = candidates(members, data, 4), np.array([7, 3, 3, 29])
    parts = [candidates(members, data.take(rows[at : at + 2]), 4) for at in (0, 2)]
    for found in (whole.take(rows), Candidates.joined(parts)):
        np.testing.assert_array_equal(np.diff(found.offsets), np.diff(whole.offsets)[rows])
        expected = np.concatenate([np.arange(whole.offsets[r], whole.offsets[r + 1]) for r in rows])
        np.testing.assert_array_equal(found.items, whole.items[expected])
        for name in whole.batch.names:
            np.testing.assert_array_equal(found.batch.column(name).values, whole.batch.column(name).values[expected])


@pytest.mark.parametrize("final", ["blend", "gbdt"])
def test_a_stack_beats_members_that_complement_each_other(members: Recommender, final: str) -> None:
    stacked, choice = second_stage(members, shop(600, 3), exclude_seen=False, depth=20, final=final, params=SMALL, source=SOURCE)
    assert choice.reranker.chosen == final
    found = stacked.rankings(shop(600, 4), exclude_seen=False)
    gain = {name: of_rows(each)["ndcg@10"].mean() for name, each in found.items()}
    assert list(gain) == ["follower", "popular", MEAN, STACK]
    assert gain[STACK] > 1.05 * max(gain["follower"], gain["popular"], gain[MEAN])
    # the estimate on held-out validation rows is that of the test rows, up to chance
    assert choice.record["ndcg@10"][final] == pytest.approx(gain[STACK], abs=0.05)


def test_where_the_target_is_no_candidate_its_rank_is_behind_them(members: Recommender) -> None:
    data = shop(200, 5)
    reranker = second_stage(members, shop(300, 3), exclude_seen=False, depth=2, final="blend", source=SOURCE)[0].reranker
    stacked = replace(members, reranker=reranker)
    rankings, survey = stacked.survey(data, exclude_seen=False, depth=2)
    assert survey is not None
    counts = np.diff(survey.candidates.offsets)
    lost = np.setdiff1d(np.arange(200), survey.candidates.rows[survey.hits])
    assert len(lost) > 20
    rank = rankings[STACK].rank
    assert (rank[lost] > counts[lost]).all()
    assert (rank > 0).all()
    inside = np.setdiff1d(np.arange(200), lost)
    assert (rank[inside] <= counts[inside]).all()
    # what the choice is made by is what the full ranking says
    [stage] = stacked.stages(stacked.seen(data.batch), exclude_seen=False)
    scores = stacked.combine(stage)
    np.testing.assert_array_equal(survey.places(scores[survey.candidates.rows, survey.candidates.items]), rank)
    for row in lost:
        behind = np.setdiff1d(np.arange(2, scores.shape[1]), survey.candidates.items[survey.candidates.rows == row])
        average = -np.mean([each[row, behind] for each in stage.ranks.values()], axis=0)
        own = average[behind == survey.target[row]]
        assert rank[row] == counts[row] + (average >= own - 1e-4).sum()


def test_the_simplest_wins_where_nothing_is_better_beyond_noise(members: Recommender) -> None:
    twins = replace(members, members=(members.members[0], replace(members.members[0], name="twin")))
    stacked, choice = second_stage(twins, shop(200, 3), exclude_seen=False, depth=20, params=SMALL, source=SOURCE)
    # of the same answers twice the rank average is each of them, and final models that know the user's items are better
    assert choice.ranks[MEAN].tolist() == choice.ranks["follower"].tolist()
    assert set(choice.record["ndcg@10"]) == {"follower", "twin", MEAN, "blend", "gbdt"}
    assert stacked.reranker.chosen == choice.record["chosen"]
    few, choice = second_stage(twins, shop(3, 3), exclude_seen=False, depth=20, source=SOURCE)
    assert choice.record["chosen"] == MEAN
    assert few.reranker.final is None
    assert STACK not in few.rankings(shop(50, 4))


def test_rows_of_one_user_are_no_more_evidence_than_the_user(members: Recommender) -> None:
    twins = replace(members, members=(members.members[0], replace(members.members[0], name="twin")))
    survey = twins.survey(shop(12, 8), exclude_seen=False, depth=20)[1]
    assert survey is not None
    again, users = Survey.joined([survey] * 30), np.tile(np.arange(12), 30)
    record = choose(again, 20, params=SMALL, users=users, source=SOURCE).record
    # of 360 rows of as many users this would be beyond noise
    assert record["ndcg@10"]["gbdt"] > record["ndcg@10"][MEAN] + 0.04
    assert record["chosen"] == MEAN


def crowded(rows: int, seed: int) -> TrainingData:
    """A shop whose rows ask for the most popular items more often than their histories tell."""
    data = shop(rows, seed)
    rng = np.random.default_rng(seed)
    return replace(data, target=np.where(rng.random(rows) < 0.4, rng.choice([2, 3, 4], rows), data.target))


def by_items(place: Array, target: Array) -> float:
    """NDCG@10 of every item that is a target, then their mean."""
    gain = np.where((place > 0) & (place <= 10), 1 / np.log2(1 + np.maximum(place, 1)), 0.0)
    return float(np.mean([gain[target == item].mean() for item in np.unique(target)]))


@pytest.mark.parametrize("final", ["blend", "gbdt", None])
def test_by_the_average_over_items_rare_items_come_further_up(final: str | None) -> None:
    members = fit_recommender(MEMBERS, crowded(400, 1), source=SOURCE)
    survey = members.survey(crowded(600, 3), exclude_seen=False, depth=20)[1]
    assert survey is not None
    rows, items = (choose(survey, 20, final=final, params=SMALL, average=average, source=SOURCE) for average in ("rows", "items"))
    assert (rows.record["average"], rows.record["tau"], rows.reranker.tau) == ("rows", 0.0, 0.0)
    assert items.record["average"] == "items"
    assert items.reranker.tau == items.record["tau"] > 0
    chosen = items.record["chosen"]
    # both know what every tau gives on rows that were not fitted on
    if rows.record["chosen"] == chosen:
        assert rows.record["frontier"] == items.record["frontier"]
    frontier = {each["tau"]: each for each in items.record["frontier"]}
    assert list(frontier) == [tenths / 10 for tenths in range(11)]
    best = max(frontier.values(), key=lambda each: each["items"])
    assert best["tau"] == items.record["tau"]
    assert best["items"] == pytest.approx(by_items(items.ranks[chosen], survey.target))
    assert best["items"] == pytest.approx(items.record["ndcg@10"][chosen])
    assert frontier[0.0]["rows"] == pytest.approx(of_rows_at_10(rows.ranks[chosen]))
    assert best["items"] > frontier[0.0]["items"]
    # and so it is on other rows, whose lists are of rarer items
    test = crowded(600, 4)
    found = [replace(members, reranker=choice.reranker).rankings(test, exclude_seen=False)[STACK] for choice in (rows, items)]
    target = members.vocabulary.target(test).astype(np.int64)
    assert by_items(found[1].rank, target) > by_items(found[0].rank, target)
    seldom = [np.log1p(members.popularity)[each.top[:, :5]].mean() for each in found]
    assert seldom[1] < seldom[0]


def of_rows_at_10(place: Array) -> float:
    return float(np.where((place > 0) & (place <= 10), 1 / np.log2(1 + np.maximum(place, 1)), 0.0).mean())


def test_scores_are_adjusted_by_how_often_training_held_the_item(members: Recommender) -> None:
    survey = members.survey(shop(200, 3), exclude_seen=False, depth=10)[1]
    assert survey is not None
    final = choose(survey, 10, final="blend", source=SOURCE).reranker.final
    assert final is not None
    plain, shifted = order(final, survey.candidates), order(final, survey.candidates, 0.5)
    count = np.array([members.popularity[item] for item in survey.candidates.items])
    np.testing.assert_allclose(shifted, plain - 0.5 * np.log(1 + count), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(order(final, survey.candidates, 0.0), plain)


def test_an_adjusted_second_stage_is_stored_and_an_odd_one_refused(members: Recommender) -> None:
    stacked, _ = second_stage(members, shop(200, 3), exclude_seen=False, depth=10, final="blend", source=SOURCE)
    shifted = replace(stacked, reranker=replace(stacked.reranker, tau=0.7))
    batch = shop(40, 6).batch
    lists = [each.lists(batch, 10, exclude_seen=False).items for each in (stacked, shifted)]
    assert (lists[0] != lists[1]).any()
    loaded = Recommender.load(shifted.save(), SOURCE.load())
    np.testing.assert_array_equal(loaded.lists(batch, 10, exclude_seen=False).items, lists[1])
    about = json.loads(stacked.save().texts["recommender.json"])
    for tau, expected in ((None, 0.0), (0.3, 0.3), (-1, "tau is -1.0"), (float("nan"), "tau is nan"), ("x", "x")):
        changed = {k: v for k, v in about["reranker"].items() if k != "tau"} | ({} if tau is None else {"tau": tau})
        texts = {**stacked.save().texts, "recommender.json": json.dumps({**about, "reranker": changed})}
        artefact = replace(stacked.save(), texts=texts)
        if isinstance(expected, str):
            with pytest.raises(ArtefactError, match=expected):
                Recommender.load(artefact, SOURCE.load())
        else:
            assert Recommender.load(artefact, SOURCE.load()).reranker.tau == expected


def test_another_average_is_refused(members: Recommender) -> None:
    with pytest.raises(UsageError, match="unknown average of a second stage 'users'; choose one of: items, rows"):
        second_stage(members, shop(60, 3), average="users", source=SOURCE)


def test_a_member_may_be_asked_for_and_stands_for_the_stack(members: Recommender) -> None:
    alone, _ = second_stage(members, shop(100, 3), exclude_seen=False, final="follower", source=SOURCE)
    found = alone.rankings(shop(100, 4), exclude_seen=False)
    np.testing.assert_array_equal(found[STACK].rank, found["follower"].rank)
    with pytest.raises(
        UsageError, match="final 'logistic' cannot order candidates; expected 'mean', a member's name, or one of: blend"
    ):
        second_stage(members, shop(100, 3), final="logistic", source=SOURCE)
    with pytest.raises(UsageError, match="unknown model 'blnd'"):
        second_stage(members, shop(100, 3), final="blnd", source=SOURCE)


@pytest.mark.parametrize("final", ["blend", "gbdt"])
def test_what_is_stored_answers_the_same(members: Recommender, final: str) -> None:
    stacked, _ = second_stage(members, shop(200, 3), exclude_seen=False, depth=10, final=final, params=SMALL, source=SOURCE)
    loaded = Recommender.load(stacked.save(), SOURCE.load())
    assert (loaded.reranker.chosen, loaded.reranker.depth) == (final, 10)
    batch = shop(40, 6).batch
    for among in (None, np.arange(10, 30, dtype=np.int32)):
        one, other = (each.lists(batch, 15, exclude_seen=False, among=among) for each in (stacked, loaded))
        for name in ("items", "score", "ranks", "cold"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
        assert (one.items > 0).all()  # full lists, though candidates are fewer
        assert (np.diff(one.score, axis=1) <= 0).all()
    assert loaded.save().texts == stacked.save().texts


def test_a_row_alone_gets_the_list_it_gets_among_others_and_a_stranger_what_is_popular(members: Recommender) -> None:
    stacked, _ = second_stage(members, shop(200, 3), exclude_seen=False, depth=10, final="gbdt", params=SMALL, source=SOURCE)
    data = shop(20, 6)
    column, ages = data.batch.column("items"), data.batch.column("ages")
    empty = np.concatenate([[0], np.cumsum(np.where(np.arange(20) == 5, 0, column.lengths))])
    kept = np.repeat(np.arange(20) != 5, column.lengths)
    block = {"items": replace(column, values=column.values[kept], offsets=empty), "ages": Column(ages.values[kept], empty)}
    batch = replace(data.batch, blocks={"user": block})
    lists = stacked.lists(batch, 5)
    assert lists.cold.tolist() == [row == 5 for row in range(20)]
    popular = np.argsort(-stacked.popularity, kind="stable")[:5]
    assert lists.items[5].tolist() == stacked.vocabulary.log_codes("item_id", popular).tolist()
    alone = stacked.lists(batch.take(np.array([6])), 5)
    np.testing.assert_array_equal(alone.items[0], lists.items[6])
    np.testing.assert_array_equal(alone.ranks[:, 0], lists.ranks[:, 6])


def test_a_catalogue_of_one_item_has_an_answer(members: Recommender) -> None:
    data = shop(40, 1, items=1)
    one = fit_recommender(MEMBERS, data, source=SOURCE)
    stacked, choice = second_stage(one, data, exclude_seen=False, source=SOURCE)
    assert choice.record["ndcg@10"][MEAN] == 1.0
    assert stacked.reranker.chosen == MEAN
    assert stacked.lists(data.batch, 3, exclude_seen=False).items[:, 0].tolist() == [2] * 40
    forced, _ = second_stage(one, data, exclude_seen=False, final="blend", source=SOURCE)
    assert (forced.rankings(data, exclude_seen=False)[STACK].rank == 1).all()
    assert (forced.lists(data.batch, 3).items == 0).all()  # seen, and there is nothing else


def test_a_record_holds_the_stack_and_how_it_was_chosen(members: Recommender) -> None:
    stacked, choice = second_stage(members, shop(300, 3), exclude_seen=False, depth=20, params=SMALL, source=SOURCE)
    record, ranks = ranked(stacked, shop(200, 4), choice, np.arange(200), exclude_seen=False)
    record = json.loads(json.dumps(record))
    assert record["second_stage"]["chosen"] == choice.reranker.chosen
    assert record["second_stage"]["chosen"] in ("blend", "gbdt")
    assert record["stack"]["ndcg@10"] > record["mean"]["ndcg@10"]
    assert {each["b"] for each in record["comparisons"]} == {STACK}
    assert list(ranks) == ["follower", "popular", MEAN, STACK]
    assert record["best_member"] == max(MEMBERS, key=lambda m: choice.record["ndcg@10"][m.name]).name


def test_the_blend_is_the_conditional_logit_of_a_general_optimiser() -> None:
    data = toy(300, 3, "relevance")
    names = ("item_popularity", "pair_overlap", "item_price")
    fitted = Blend().fit(
        data, params=Blend().spec.params()(strength=5.0, columns=names), seed=0, progress=lambda done, text: None
    )
    assert isinstance(fitted, FittedBlend)
    table = np.stack([data.batch.column(name).values for name in fitted.columns], axis=1).astype(np.float64)
    table = np.where(np.isfinite(table), table, np.nanmean(table, axis=0))
    mean, scale = table.mean(axis=0), table.std(axis=0)
    table = (table - mean) / scale
    assert data.batch.group is not None
    groups = [np.arange(a, b) for a, b in zip(data.batch.group, data.batch.group[1:])]

    def loss(weights: np.ndarray) -> float:
        total = 2.5 * float(weights @ weights)
        for rows in groups:
            target = data.target[rows]
            if target.min() < target.max():
                eta = table[rows] @ weights
                total -= float((eta - np.log(np.exp(eta).sum()))[target == target.max()].mean())
        return total

    expected = minimize(loss, np.zeros(len(names)), options={"gtol": 1e-9}).x
    np.testing.assert_allclose(fitted.weights * scale, expected, rtol=1e-4, atol=1e-6)


def test_final_models_of_rankings_need_groups() -> None:
    data = toy(50, 1, "relevance")
    alone = replace(data, batch=replace(data.batch, group=None))
    for model in (Blend(), GBDT()):
        with pytest.raises(PluginError, match=r"expected offsets in batch\.group"):
            model.fit(alone, params=model.tiny(), seed=0, progress=lambda done, text: None)
    fitted = Blend().fit(data, params=Blend().tiny(), seed=0, progress=lambda done, text: None)
    with pytest.raises(PluginError, match="the blend was fitted on 'user_purchases_28d', which is not here; it has: channel"):
        fitted.predict(data.batch.select(["channel"]))


def test_pairs_are_counted_side_by_side_and_unknown_ones_never() -> None:
    counts = ItemCounts(np.zeros(10), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert counts.followed(np.array([2]), np.array([3])).tolist() == [0.0]
    assert Reranker().chosen == MEAN


def test_a_short_list_is_the_beginning_of_a_long_one(members: Recommender) -> None:
    """Where candidates are enough, what stands behind them is not ranked; the list is the same."""
    stacked, _ = second_stage(members, shop(200, 3), exclude_seen=False, depth=6, final="blend", params=SMALL, source=SOURCE)
    assert stacked.reranker.final is not None
    data = shop(30, 8)
    long = stacked.lists(data.batch, 40)  # more than there are candidates
    for k in (1, 6, 9):
        short = stacked.lists(data.batch, k)
        np.testing.assert_array_equal(short.items, long.items[:, :k])
        np.testing.assert_array_equal(short.score, long.score[:, :k])
        np.testing.assert_array_equal(short.ranks, long.ranks[:, :, :k])
    among = np.arange(2, 40, 3, dtype=np.int32)
    some, few = (stacked.lists(data.batch, k, among=among) for k in (12, 3))
    np.testing.assert_array_equal(few.items, some.items[:, :3])
