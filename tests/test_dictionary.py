"""Codes: stable, append-only, of one type, and the same however many are asked for at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import FeatureError, UnknownIdError
from zoo.events.delta import data_files, open_table
from zoo.events.dictionaries import DictionaryStore
from zoo.events.dictionary import FEW
from zoo.events.ingest import append
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema


@pytest.fixture
def store(tmp_path):
    DictionaryStore.create(tmp_path / "dictionaries")
    return DictionaryStore(tmp_path / "dictionaries")


def test_codes_start_at_two_in_order_of_first_appearance(store):
    store.extend({"item_id": pa.array([30, 10, 30, None, 20])})
    items = store.get("item_id", "int")
    assert items.ids == [30, 10, 20]
    assert items.size == 5
    assert items.encode([30, 10, 20]).tolist() == [2, 3, 4]
    assert items.encode([30]).dtype == np.int32


def test_null_is_nothing_and_a_stranger_is_unknown(store):
    store.extend({"item_id": pa.array([1])})
    assert store.get("item_id", "int").encode([None, 7, 1]).tolist() == [0, 1, 2]


def test_codes_stay_when_the_dictionary_grows_and_an_older_one_does_not_learn(store):
    store.extend({"user_id": pa.array(["ann", "bob"])})
    old = store.get("user_id", "string")
    store.extend({"user_id": pa.array(["zoe", "bob", "abe"])})
    young = store.get("user_id", "string")
    assert young.encode(["ann", "bob", "zoe", "abe"]).tolist() == [2, 3, 4, 5]
    assert old.encode(["ann", "bob", "zoe", "abe"]).tolist() == [2, 3, 1, 1]


def test_another_process_would_read_the_same_codes(store):
    store.extend({"user_id": pa.array(["ann"]), "item_id": pa.array([5])})
    store.extend({"user_id": pa.array(["bob"]), "item_id": pa.array([3])})
    again = DictionaryStore(store.folder)
    assert again.get("user_id", "string").ids == ["ann", "bob"]
    assert again.get("item_id", "int").ids == [5, 3]
    assert again.names() == ["item_id", "user_id"]


def test_an_open_store_sees_what_another_added(store):
    reader = DictionaryStore(store.folder)
    assert reader.get("user_id", "int").size == 2
    store.extend({"user_id": pa.array([9])})
    assert reader.get("user_id", "int").ids == [9]
    assert reader.version() == store.version()


def test_many_small_additions_are_merged_and_no_code_moves(store):
    for number in range(150):
        store.extend({"user_id": pa.array([number * 7]), "item_id": pa.array([f"i{number}"])})
    assert len(list(store.folder.glob("*.parquet"))) > len(data_files(open_table(store.folder))) < 64
    assert store.get("user_id", "int").encode([7 * n for n in range(150)]).tolist() == list(range(2, 152))
    again = DictionaryStore(store.folder)
    assert again.get("user_id", "int").ids == [7 * n for n in range(150)]
    assert again.get("item_id", "string").ids == [f"i{n}" for n in range(150)]


def test_a_reader_from_before_a_merge_reads_on(store):
    store.extend({"x": pa.array([0])})
    reader = DictionaryStore(store.folder)
    assert reader.get("x", "int").ids == [0]
    for number in range(1, 70):
        store.extend({"x": pa.array([number])})
    assert reader.get("x", "int").ids == list(range(70))


def test_an_interrupt_after_the_commit_gives_no_code_twice(store, monkeypatch):
    store.extend({"x": pa.array([1])})
    with monkeypatch.context() as patch:
        patch.setattr(store, "_put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.extend({"x": pa.array([2])})
    store.extend({"x": pa.array([3])})
    assert store.get("x", "int").ids == [1, 2, 3]
    assert DictionaryStore(store.folder).get("x", "int").ids == [1, 2, 3]


def test_extending_by_nothing_new_makes_no_version(store):
    before = store.extend({"user_id": pa.array([1, 2])})
    assert store.extend({"user_id": pa.array([2, 1]), "item_id": pa.array([], pa.int64())}) == before


@pytest.mark.parametrize("kind", ["int", "string"])
def test_many_values_get_the_codes_that_each_would_get_alone(store, kind):
    rng = np.random.default_rng(0)
    known = rng.permutation(5_000)[:3_000]
    asked = rng.integers(0, 6_000, 4 * FEW)
    if kind == "string":
        known, asked = known.astype(str), asked.astype(str)
    store.extend({"x": pa.array(known.tolist())})
    dictionary = store.get("x", kind)
    values = pa.array(asked.tolist(), mask=rng.random(len(asked)) < 0.1)
    together = dictionary.encode(values)
    apart = np.concatenate([dictionary.encode(values[i : i + FEW]) for i in range(0, len(values), FEW)])
    oracle = {v: i + 2 for i, v in enumerate(known.tolist())}
    assert together.tolist() == [0 if v is None else oracle.get(v, 1) for v in values.to_pylist()]
    assert apart.tolist() == together.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8), max_size=4))
def test_decoding_inverts_encoding_for_any_text(tmp_path_factory, pushes):
    folder = tmp_path_factory.mktemp("d")
    DictionaryStore.create(folder)
    store = DictionaryStore(folder)
    for push in pushes:
        store.extend({"x": pa.array(push, pa.string())})
    dictionary = store.get("x", "string")
    values = [v for push in pushes for v in push]
    codes = dictionary.encode(pa.array(values, pa.string()))
    assert dictionary.decode(codes).to_pylist() == values
    assert sorted(set(codes.tolist())) == list(range(2, dictionary.size))


def test_decoding_padding_and_unknown_gives_nothing_and_a_code_never_given_is_refused(store):
    store.extend({"x": pa.array([7])})
    dictionary = store.get("x", "int")
    assert dictionary.decode(np.array([0, 1, 2])).to_pylist() == [None, None, 7]
    assert dictionary.numbers(np.array([2, 2])) == [7, 7]
    assert dictionary.numbers(np.zeros(0, np.int32)) == []
    assert all(dictionary.numbers(np.array([2, code])) is None for code in (-1, 0, 1, 3))
    with pytest.raises(UnknownIdError, match="code 3 is not in x; expected 0 to 2"):
        dictionary.decode(np.array([3]))
    with pytest.raises(UnknownIdError, match="code -1"):
        dictionary.decode(np.array([-1]))


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        np.array([1, 2], np.int16),
        np.array([1, 2], object),
        pa.chunked_array([[1], [2]]),
        pa.array([1, 2]).dictionary_encode(),
        pl.Series([1, 2]),
        pd.Series([1, 2]),
        pd.Series([1.0, 2.0, np.nan]),
    ],
)
def test_identifiers_come_in_any_container(store, values):
    store.extend({"x": pa.array([2, 1])})
    assert store.get("x", "int").encode(values).tolist()[:2] == [3, 2]


@pytest.mark.parametrize("kind", ["int", "string"])
@pytest.mark.parametrize("values", [[1.5], [True], [b"1"], [2**70], ["1", 1], [[1]]])
def test_an_identifier_of_no_usable_type_is_refused(store, kind, values):
    with pytest.raises(UnknownIdError):
        store.get("x", kind).encode(values)


def test_one_and_the_text_one_are_different_identifiers(store):
    with pytest.raises(UnknownIdError, match="user_id '1' is string; this log's are of type int"):
        store.get("user_id", "int").encode(["1"])
    with pytest.raises(UnknownIdError, match="user_id 1 is int64; this log's are of type string"):
        store.get("user_id", "string").encode([1])


def test_a_log_names_its_dictionaries(tmp_path):
    log = EventLog.create(tmp_path, LogSchema(user_id="string", extra={"campaign_id": "string", "arm": "int64"}))
    assert log.dictionary("events.campaign_id").size == 2
    frame = pa.table({"user_id": ["ü"], "event_type": ["sent"], "time": [1], "campaign_id": ["spring"], "item_id": pa.nulls(1)})
    append(log, frame, idempotency_key="a", now=10)
    log.put_table("items", pa.table({"item_id": [1], "category": ["tea"], "price": [2.0]}))
    assert log.dictionary("user_id").ids == ["ü"]
    assert log.dictionary("event_type").ids == ["sent"]
    assert log.dictionary("events.campaign_id").ids == ["spring"]
    assert log.dictionary("items.category").ids == ["tea"]
    with pytest.raises(FeatureError, match=r"'items.price'.*event_type, events.campaign_id, item_id, items.category, user_id"):
        log.dictionary("items.price")


def test_codes_of_a_log_stay_across_pushes_and_processes(tmp_path):
    log = EventLog.create(tmp_path, LogSchema())

    def push(users, key):
        count = len(users)
        frame = pa.table({"user_id": users, "item_id": users, "event_type": ["view"] * count, "time": [1] * count})
        append(log, frame, idempotency_key=key, now=10)

    push([50, 40], "a")
    first = log.dictionary("user_id").encode([50, 40])
    push([10, 40, 60], "b")
    assert log.dictionary("user_id").encode([50, 40]).tolist() == first.tolist() == [2, 3]
    assert EventLog.open(tmp_path).dictionary("user_id").ids == [50, 40, 10, 60]
