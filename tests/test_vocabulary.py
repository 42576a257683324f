from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ArtefactError, FeatureError
from zoo.plugin import UNKNOWN, Artefact, Catalogue, Column, FeatureBatch
from zoo.testing import toy
from zoo.vocabulary import Vocabulary

CATALOGUE = Catalogue(
    names={
        "item_id": np.array(["", "?", *[f"item {i}" for i in range(2, 12)]], object),
        "event_type": np.array(["", "?", "view", "buy"], object),
        "items.category": np.array(["", "?", "milk", "bread", "tea"], object),
    },
    items={
        "category": Column(np.array([0, 1, 2, 2, 3, 3, 4, 4, 2, 3, 4, 2], np.int32), dictionary="items.category"),
        "price": Column(np.arange(12, dtype=np.float64)),
    },
)


def batch_of(histories: list[list[int]], catalogue: Catalogue = CATALOGUE) -> FeatureBatch:
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    items = np.array([code for h in histories for code in h], np.int32)
    n = len(histories)
    block = {
        "items": Column(items, offsets, "item_id"),
        "values": Column(items * 1.5, offsets),
        "last_type": Column(np.full(n, 2, np.int32), dictionary="event_type"),
    }
    zeros = np.zeros(n, np.int64)
    return FeatureBatch({"user": block}, {"user": np.arange(n, dtype=np.int32)}, zeros, zeros, catalogue)


def test_seen_codes_become_dense_and_unseen_ones_unknown():
    batch = batch_of([[7, 3, 0], [3, 1]])
    mapped = Vocabulary.fit(batch).apply(batch_of([[3, 7, 5, 0, 1, 11]]))
    assert mapped.column("items").values.tolist() == [2, 3, 1, 0, 1, 1]
    assert mapped.column("items").values.dtype == np.int32
    assert mapped.column("values").values.tolist() == [4.5, 10.5, 7.5, 0, 1.5, 16.5]
    assert mapped.column("last_type").values.tolist() == [2]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 11), max_size=6), min_size=2, max_size=8),
    st.integers(1, 3),
    st.data(),
)
def test_a_code_seen_only_in_scored_rows_is_never_anything_but_unknown(histories, min_count, draw):
    batch = batch_of(histories)
    cut = draw.draw(st.integers(1, len(histories) - 1))
    train = batch.take(np.arange(cut))
    vocabulary = Vocabulary.fit(train, min_count)
    codes = [c for h in histories[:cut] for c in h]
    kept = sorted({c for c in codes if c >= 2 and codes.count(c) >= min_count})
    assert vocabulary.kept["item_id"].tolist() == kept
    scored = vocabulary.apply(batch.take(np.arange(cut, len(histories))))
    raw = [c for h in histories[cut:] for c in h]
    assert scored.column("items").values.tolist() == [c if c < 2 else kept.index(c) + 2 if c in kept else 1 for c in raw]
    assert scored.catalogue.size("item_id") == vocabulary.size("item_id") == len(kept) + 2


def test_stored_rows_that_no_row_uses_do_not_count():
    batch = batch_of([[3], [4]]).take(np.array([0, 0]))
    assert Vocabulary.fit(batch).kept["item_id"].tolist() == [3]


def test_the_catalogue_follows_the_codes():
    vocabulary = Vocabulary.fit(batch_of([[7, 4]]))
    mapped = vocabulary.apply(batch_of([[4]])).catalogue
    assert mapped.names["item_id"].tolist() == ["", "?", "item 4", "item 7"]
    assert mapped.items["price"].values.tolist() == [0, 1, 4, 7]
    # Items 4 and 7 are bread and tea: milk belongs to no item of the window and is unknown.
    assert mapped.names["items.category"].tolist() == ["", "?", "bread", "tea"]
    assert mapped.items["category"].values.tolist() == [0, 1, 2, 3]


def test_codes_of_a_dictionary_that_training_did_not_have_are_unknown():
    vocabulary = Vocabulary.fit(batch_of([[3]]).select(["items"]))
    mapped = vocabulary.apply(batch_of([[3]]))
    assert mapped.column("last_type").values.tolist() == [1]
    assert mapped.catalogue.names["event_type"].tolist() == ["", "?"]


def test_a_batch_without_catalogue_is_mapped_too():
    mapped = Vocabulary.fit(batch_of([[3]], Catalogue())).apply(batch_of([[3, 4]], Catalogue()))
    assert mapped.column("items").values.tolist() == [2, 1]


def test_two_catalogues_in_turn_are_not_mixed_up():
    vocabulary = Vocabulary.fit(batch_of([[3]]))
    other = Catalogue({"item_id": np.array(["", "?", "a", "b"], object)})
    for _ in range(2):
        assert vocabulary.apply(batch_of([[3]])).catalogue.names["item_id"].tolist() == ["", "?", "item 3"]
        assert vocabulary.apply(batch_of([[3]], other)).catalogue.names["item_id"].tolist() == ["", "?", "b"]


def test_save_and_load_answer_the_same():
    vocabulary = Vocabulary.fit(batch_of([[7, 4], [11]]))
    loaded = Vocabulary.load(vocabulary.save())
    assert {k: v.tolist() for k, v in loaded.kept.items()} == {k: v.tolist() for k, v in vocabulary.kept.items()}
    raw = batch_of([[4, 5, 11]])
    assert np.array_equal(loaded.apply(raw).column("items").values, vocabulary.apply(raw).column("items").values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), max_size=6), min_size=1, max_size=4), st.sets(st.integers(2, 11)))
def test_items_behind_those_of_training_are_told_apart_and_taken_back_to_unknown(histories, more):
    vocabulary = Vocabulary.fit(batch_of([[7, 4], [11]]))
    more = np.array(sorted(more - {4, 7, 11}), np.int64)
    wide = vocabulary.extended(CATALOGUE, more)
    assert wide.kept["item_id"].tolist() == [4, 7, 11, *more.tolist()]
    rows = batch_of(histories)
    seen = wide.apply(rows)
    names = seen.catalogue.names["item_id"]
    expected = ["" if c == 0 else f"item {c}" if c in wide.kept["item_id"] else "?" for h in histories for c in h]
    assert names[seen.column("items").values].tolist() == expected
    whose = CATALOGUE.items["category"].values[more]
    found = seen.catalogue.names["items.category"][seen.catalogue.items["category"].values[5:]]
    assert found.tolist() == CATALOGUE.names["items.category"][whose].tolist()
    narrow, plain = vocabulary.narrowed(seen), vocabulary.apply(rows)
    for name in plain.names:
        np.testing.assert_array_equal(narrow.column(name).values, plain.column(name).values)
    for name, texts in plain.catalogue.names.items():
        assert narrow.catalogue.names[name].tolist() == texts.tolist()
    for name, column in plain.catalogue.items.items():
        np.testing.assert_array_equal(narrow.catalogue.items[name].values, column.values)


def test_the_batch_is_left_as_it_was():
    batch = batch_of([[7, 4]])
    Vocabulary.fit(batch).apply(batch)
    assert batch.column("items").values.tolist() == [7, 4]


def test_a_catalogue_shorter_than_the_codes_is_refused():
    short = Catalogue({"item_id": np.array(["", "?", "a"], object)})
    with pytest.raises(FeatureError, match=r"'item_id' of the catalogue has 3 rows, but codes up to 7"):
        Vocabulary.fit(batch_of([[7]], short)).apply(batch_of([[7]], short))


@pytest.mark.parametrize("values", [np.array([2, -1], np.int32), np.array([2.0, 3.0])])
def test_codes_that_cannot_be_codes_are_refused(values):
    zeros = np.zeros(2, np.int64)
    batch = FeatureBatch({"user": {"c": Column(values, dictionary="d")}}, {"user": np.arange(2)}, zeros, zeros)
    with pytest.raises(FeatureError, match="codes of dictionary 'd'"):
        Vocabulary.fit(batch)
    with pytest.raises(FeatureError, match="codes of dictionary 'd'"):
        Vocabulary({}).apply(batch)


def test_a_broken_artefact_is_named():
    with pytest.raises(ArtefactError, match="not a vocabulary"):
        Vocabulary.load(Artefact(texts={"dictionaries.json": '["a"]'}))


def test_the_items_that_ranking_rows_lead_to_are_kept_and_mapped_with_them() -> None:
    data = toy(60, 3, "ranking")
    only_last = replace(data, target=np.where(np.arange(60) == 0, 99.0, data.target))  # an item that no sequence holds
    names = {**data.batch.catalogue.names, "item_id": np.array([str(n) for n in range(100)], object)}
    catalogue = replace(data.batch.catalogue, names=names, items={})
    only_last = replace(only_last, batch=replace(data.batch, catalogue=catalogue))
    vocabulary = Vocabulary.of(only_last)
    assert 99 in vocabulary.kept["item_id"]
    target = vocabulary.target(only_last)
    np.testing.assert_array_equal(vocabulary.log_codes("item_id", target.astype(int)), only_last.target)
    later = replace(only_last, target=np.full(60, 98.0))
    np.testing.assert_array_equal(vocabulary.target(later), np.full(60, float(UNKNOWN)))
    clicks = toy(60, 3)
    assert vocabulary.target(clicks) is clicks.target
    assert Vocabulary.of(clicks).kept.keys() == Vocabulary.fit(clicks.batch).kept.keys()
