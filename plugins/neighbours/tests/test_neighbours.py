"""The neighbours keep the contract, and count what a plain loop over histories counts."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from zoo_neighbours import Covisit, Ease, ItemKNN, Popularity, Repeat, Slit
from zoo_neighbours.histories import UNSEEN, Histories

from zoo.plugin import Array, Catalogue, Column, FeatureBatch, PluginError, Target, TrainingData
from zoo.testing import contract, toy

test_popularity = contract(Popularity())
test_repeat = contract(Repeat())
test_covisit = contract(Covisit())
test_itemknn = contract(ItemKNN())
test_ease = contract(Ease())
test_slit = contract(Slit())

MODELS = (Popularity(), Repeat(), Covisit(), ItemKNN(), Ease(), Slit())
SIZE = 9
DAY = 86_400
TYPES = np.array(["", "?", "view", "purchase"], object)


def fit(plugin: Any, data: TrainingData, **params: Any) -> Any:
    return plugin.fit(data, params=plugin.spec.params()(**params), seed=0, progress=lambda done, text: None)


def data_of(histories: list[list[int]], targets: list[int] | None = None, ages: list[list[float]] | None = None) -> TrainingData:
    """Rows of item codes, oldest first; ages in days (default: a day between events, the newest a day old)."""
    n = len(histories)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in histories])]).astype(np.int64)
    days = ages or [[float(len(row) - at) for at in range(len(row))] for row in histories]
    block = {
        "items": Column(np.array([item for row in histories for item in row], np.int32), offsets, "item_id"),
        "event_types": Column(np.array([2 + item % 2 for row in histories for item in row], np.int32), offsets, "event_type"),
        "ages": Column(np.array([day * DAY for row in days for day in row]), offsets),
    }
    names = {"item_id": np.array([str(code) for code in range(SIZE)], object), "event_type": TYPES}
    rows = np.arange(n, dtype=np.int32)
    as_of = np.full(n, 1_700_000_000_000_000)
    batch = FeatureBatch({"user": block}, {"user": rows}, as_of, as_of - 1, Catalogue(names))
    target = np.array(targets if targets is not None else [0] * n, np.float64)
    return TrainingData(batch, target, np.ones(n), as_of, Target("ranking"))


rows = st.lists(st.lists(st.integers(0, SIZE - 1), max_size=8), min_size=1, max_size=6)


def known(row: list[int]) -> list[int]:
    return [item for item in row if item >= 2]


@settings(max_examples=60, deadline=None)
@given(rows, st.data())
def test_histories_are_known_items_with_the_target_last(histories: list[list[int]], draw: Any) -> None:
    targets = draw.draw(st.lists(st.integers(0, SIZE - 1), min_size=len(histories), max_size=len(histories)))
    found = Histories.training(data_of(histories, targets), {})
    expected = [known([*row, target]) for row, target in zip(histories, targets)]
    assert [found.items[found.row == at].tolist() for at in range(len(histories))] == expected
    assert found.back.tolist() == [len(row) - at for row in expected for at in range(len(row))]


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([1, 3, 10]))
def test_covisits_are_those_of_a_loop(histories: list[list[int]], window: int) -> None:
    expected = np.zeros((SIZE, SIZE))
    counts: dict[int, int] = defaultdict(int)
    for row in map(known, histories):
        for at, item in enumerate(row):
            counts[item] += 1
            for lag in range(1, window + 1):
                if at + lag < len(row):
                    expected[item, row[at + lag]] += lag**-0.5
                    expected[row[at + lag], item] += 0.25 * lag**-0.5
    expected /= np.array([max(1, counts[code]) for code in range(SIZE)]) ** 0.5
    options = {"window": window, "backward": 0.25, "lag_power": 0.5, "normalise": 0.5, "neighbours": 0, "recency_power": 1.0}
    model = fit(Covisit(), data_of(histories), **options)
    np.testing.assert_allclose(model.similar.toarray(), expected, rtol=1e-6)
    scores = model.score_items(data_of(histories).batch)
    for at, row in enumerate(map(known, histories)):
        votes = sum((expected[item] / (len(row) - place) for place, item in enumerate(row)), np.zeros(SIZE))
        np.testing.assert_allclose(scores[at], votes, rtol=1e-5, atol=1e-6)
        alone = model.score_items(data_of([histories[at]]).batch)  # a way of its own
        np.testing.assert_array_equal(alone[0], scores[at])


def test_only_the_strongest_followers_are_kept_and_equal_ones_by_code() -> None:
    data = data_of([[2, 5], [2, 5], [2, 4], [2, 3], [2, 6]])
    options = {"window": 1, "backward": 0.0, "normalise": 0.0}
    kept = fit(Covisit(), data, neighbours=2, **options).similar.toarray()
    assert kept[2].tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 0]


def test_pairs_far_apart_in_time_count_less() -> None:
    data = data_of([[2, 3, 4]], ages=[[8.0, 4.0, 3.0]])
    found = fit(Covisit(), data, window=1, backward=0, normalise=0, half_life=2.0).similar.toarray()
    assert found[2, 3] == pytest.approx(0.25)
    assert found[3, 4] == pytest.approx(0.5**0.5)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_cosines_are_those_of_a_loop(histories: list[list[int]]) -> None:
    users = [set(known(row)) for row in histories]
    expected = np.zeros((SIZE, SIZE))
    for a in range(2, SIZE):
        for b in range(2, SIZE):
            if a != b and (both := sum(a in user and b in user for user in users)):
                counts = sum(a in user for user in users) * sum(b in user for user in users)
                expected[a, b] = both / (counts**0.5 + 2.0)
    found = fit(ItemKNN(), data_of(histories), shrink=2.0, neighbours=0).similar.toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.MonkeyPatch.context() as patch:  # and so it is where few pairs are looked at together
        patch.setattr("zoo_neighbours.counting.PAIRS", 3)
        np.testing.assert_array_equal(found, fit(ItemKNN(), data_of(histories), shrink=2.0, neighbours=0).similar.toarray())


@settings(max_examples=40, deadline=None)
@given(rows)
def test_ease_is_its_formula(histories: list[list[int]]) -> None:
    model = fit(Ease(), data_of(histories), regularisation=3.0)
    x = np.array([[float(code in known(row)) for code in model.kept] for row in histories]).reshape(len(histories), -1)
    inverse = np.linalg.inv(x.T @ x + 3.0 * np.eye(x.shape[1]))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(model.weights, expected, rtol=1e-4, atol=1e-6)
    assert model.kept.tolist() == sorted({code for row in histories for code in known(row)})
    scores = model.score_items(data_of(histories).batch)
    np.testing.assert_allclose(scores[:, model.kept], x @ expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([1, 2, 5]))
def test_slit_is_the_ridge_regression_of_items_on_the_events_before(histories: list[list[int]], window: int) -> None:
    model = fit(Slit(), data_of(histories), regularisation=2.0, window=window, fade=3.0)
    place = {int(code): at for at, code in enumerate(model.kept)}
    sources, targets = [], []
    for row in map(known, histories):
        for at in range(len(row)):
            source, target = np.zeros(len(place)), np.zeros(len(place))
            for lag, item in enumerate(reversed(row[max(0, at - window) : at])):
                source[place[item]] += 0.5 ** (lag / 3.0)
            target[place[row[at]]] = 1
            sources.append(source)
            targets.append(target)
    s, t = (np.array(part).reshape(len(part), len(place)) for part in (sources, targets))
    expected = np.linalg.solve(s.T @ s + 2.0 * np.eye(len(place)), s.T @ t)
    np.testing.assert_allclose(model.weights, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plugin", [Ease(), Slit()])
def test_a_large_catalogue_is_cut_to_its_most_frequent_items(plugin: Any) -> None:
    data = data_of([[2, 3, 3, 4], [3, 4, 2], [3, 4], [5, 3]])
    model = fit(plugin, data, max_items=2)
    assert model.kept.tolist() == [3, 4]
    scores = model.score_items(data.batch)
    assert (scores[:, [2, 5, 6]] == UNSEEN).all()
    assert (scores[:, [3, 4]] > UNSEEN).all()


def test_popularity_fades_and_adds_ones_own() -> None:
    data = data_of([[2, 3], [3]], ages=[[10.0, 0.5], [0.5]])
    assert fit(Popularity(), data).counts.tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 0]
    faded = fit(Popularity(), data, half_life=9.5).counts
    assert faded[2:4] == pytest.approx([0.5, 2.0])
    own = fit(Popularity(), data, own=10.0).score_items(data.batch)
    assert own[:, 2:4].tolist() == [[11, 12], [1, 12]]


@settings(max_examples=40, deadline=None)
@given(rows, st.sampled_from([None, 2.0]), st.sampled_from([0.0, 1.0, 0.5]))
def test_repeat_is_what_a_loop_over_ones_own_events_counts(
    histories: list[list[int]], half_life: float | None, rarity: float
) -> None:
    data = data_of(histories)
    scores = fit(Repeat(), data, half_life=half_life, rarity=rarity).score_items(data.batch)
    total = sum(len(known(row)) for row in histories)
    for at, row in enumerate(histories):
        for item in range(2, SIZE):
            users = sum(item in other for other in histories)
            expected = sum(other.count(item) for other in histories) / max(total, 1)
            for place, own in enumerate(row):
                faded = 1.0 if half_life is None else 0.5 ** ((len(row) - place) / half_life)
                expected += (own == item) * faded * math.log((len(histories) + 1) / (users + 0.5)) ** rarity
            assert scores[at, item] == pytest.approx(expected, rel=1e-5)


def test_repeat_lists_what_one_took_and_others_did_not_before_what_everybody_takes() -> None:
    data = data_of([[2, 5], [2, 3], [2, 3], [2]])
    asked = data_of([[5, 2]]).batch
    assert order(fit(Repeat(), data).score_items(asked)[0])[:3] == [5, 2, 3]  # what is not one's own follows by popularity
    assert order(fit(Repeat(), data, rarity=0.0).score_items(asked)[0])[:3] == [2, 5, 3]
    with pytest.raises(PluginError, match="half_life counts days, and this batch has no column 'ages'"):
        fit(Repeat(), replace(data, batch=data.batch.select(["items"])), half_life=3.0)


def test_damaged_counts_of_repeat_are_refused() -> None:
    artefact = fit(Repeat(), data_of([[2, 3], [3]])).save()
    for frequency in (artefact.arrays["frequency"][:-1], np.zeros(SIZE), np.ones(SIZE)):
        damaged = replace(artefact, arrays={**artefact.arrays, "frequency": frequency})
        with pytest.raises(PluginError, match="are no counts of one catalogue"):
            Repeat().load(damaged)


def test_events_count_as_their_type_does() -> None:
    data = data_of([[2, 3, 5]])  # even codes are views, odd ones purchases
    assert fit(Popularity(), data, event_weights={"purchase": 4.0}).counts[2:6].tolist() == [1, 4, 0, 4]
    with pytest.raises(PluginError, match="event_weights names 'buy'; the event types of this batch are: view, purchase"):
        fit(Popularity(), data, event_weights={"buy": 4.0})


def test_without_ages_days_cannot_be_counted_and_nothing_else_needs_them() -> None:
    data = data_of([[2, 3], [3]])
    data = replace(data, batch=data.batch.select(["items"]))
    for plugin in MODELS:
        assert fit(plugin, data).score_items(data.batch).shape == (2, SIZE)
    with pytest.raises(PluginError, match="half_life counts days, and this batch has no column 'ages'"):
        fit(Covisit(), data, half_life=3.0)


def test_a_batch_without_items_is_named() -> None:
    data = toy(20, 0, "ranking")
    with pytest.raises(PluginError, match="sequence column 'items', which this batch lacks; it has: event_types"):
        fit(Ease(), replace(data, batch=data.batch.select(["event_types"])))


def test_another_kind_of_target_is_refused() -> None:
    with pytest.raises(PluginError, match="ease cannot learn a target of kind 'binary'; it learns ranking"):
        fit(Ease(), toy(20))


@pytest.mark.parametrize("plugin", MODELS, ids=lambda plugin: plugin.spec.name)
def test_saving_and_loading_keeps_every_bit(plugin: Any) -> None:
    data = toy(80, 1, "ranking")
    model = fit(plugin, data)
    loaded = plugin.load(model.save())
    assert loaded.score_items(data.batch).tobytes() == model.score_items(data.batch).tobytes()


@pytest.mark.parametrize("plugin", MODELS, ids=lambda plugin: plugin.spec.name)
def test_extreme_catalogues_and_histories_are_served(plugin: Any) -> None:
    one_item = data_of([[2, 2], [2]], targets=[2, 2])
    assert np.isfinite(fit(plugin, one_item).score_items(one_item.batch)).all()
    nothing = data_of([[], []])
    assert np.isfinite(fit(plugin, nothing).score_items(nothing.batch)).all()
    endless = data_of([(np.arange(20_000) % 7 + 2).tolist(), [2]])
    scores = fit(plugin, endless).score_items(endless.batch)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("plugin", MODELS, ids=lambda plugin: plugin.spec.name)
def test_an_item_that_training_did_not_see_comes_last(plugin: Any) -> None:
    data = data_of([[2, 3], [3, 4]])
    model = fit(plugin, data)
    names = {**data.batch.catalogue.names, "item_id": np.array([str(code) for code in range(SIZE + 2)], object)}
    later = replace(data.batch, catalogue=Catalogue(names))
    scores = model.score_items(later)
    assert scores.shape == (2, SIZE + 2)
    assert (scores[:, SIZE:] == UNSEEN).all()


def order(scores: Array) -> list[int]:
    return (np.argsort(-scores[2:], kind="stable") + 2).tolist()


def test_a_penalty_too_small_for_the_data_is_said() -> None:
    data = data_of([[2, 3, 4]] * 20)
    with pytest.raises(PluginError, match="regularisation = 1e-300 is too small for items that always come together"):
        fit(Ease(), data, regularisation=1e-300)


def test_a_window_beyond_every_history_costs_no_more() -> None:
    data = data_of([[2, 3, 4, 5], [3, 2]])
    scores = [fit(Slit(), data, window=window).score_items(data.batch) for window in (5, 10**12)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    for plugin, name in ((Popularity(), "own"), (Covisit(), "backward"), (Ease(), "regularisation")):
        with pytest.raises(ValidationError, match=name):
            plugin.spec.params()(**{name: value})


def test_direction_matters_to_covisits_and_slit_and_not_to_ease() -> None:
    data = data_of([[2, 3]] * 20 + [[4, 2]] * 20 + [[5, 6]])
    asked = data_of([[2]]).batch
    for plugin, options in ((Covisit(), {}), (Slit(), {"regularisation": 1.0})):
        assert order(fit(plugin, data, **options).score_items(asked)[0])[0] == 3
    weights = fit(Ease(), data).score_items(asked)[0]
    assert weights[3] == pytest.approx(weights[4])
