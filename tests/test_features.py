"""Features of a repository as batches: rows in, rows out, strictly before; what cannot be meant is named."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import tiny_shop as shop
from tiny_shop import _applied, repo

import zoo.features
from zoo.errors import FeatureError, UnknownIdError, UsageError
from zoo.features import Features

__all__ = ["_applied", "repo"]

T = shop.START


def push(features: Features, **columns: list[Any]) -> None:
    """Events with ids of their own; columns not given are missing."""
    number = len(columns["user_id"])
    first = features.reader.log.count()
    full = {"event_id": [f"e{first + n}" for n in range(number)], "event_type": ["view"] * number, "item_id": [None] * number}
    features.append(shop.events_table(full | columns))


def sequence(batch: Any, name: str, row: int) -> list[Any]:
    """A row's sequence with identifiers' names in place of codes."""
    column = batch.column(name)
    values = column.values[column.offsets[row] : column.offsets[row + 1]]
    return [str(batch.catalogue.names[column.dictionary][v]) for v in values] if column.dictionary else values.tolist()


@pytest.fixture
def features(repo: Path) -> Features:
    return shop.opened(repo)


# Rows in, rows out


def test_n_rows_in_n_rows_out_in_order_with_repeats(features: Features) -> None:
    push(features, user_id=[1, 1, 2, 3], item_id=["i0", "i1", "i2", "i3"], time=[T, T + 1, T + 2, T + 3])
    rows = {"user_id": [3, 1, 99, 1, 2, 1, 3], "time": [T + 9, T + 9, T + 9, T + 1, T, T + 9, T + 9]}
    batch = features.history("users", rows)
    assert len(batch) == 7
    assert batch.column("n").values.tolist() == [1, 2, 0, 1, 0, 2, 1]
    assert [sequence(batch, "items", row) for row in range(7)] == [["i3"], ["i0", "i1"], [], ["i0"], [], ["i0", "i1"], ["i3"]]
    assert batch.newest.tolist() == [T + 3, T + 1, -1, T, -1, T + 1, T + 3]
    assert batch.as_of.tolist() == rows["time"]


def test_no_rows_in_no_rows_out(features: Features) -> None:
    push(features, user_id=[1], time=[T])
    for batch in (features.history("users", {"user_id": [], "time": []}), features.online("users", {"user_id": []})):
        assert len(batch) == 0
        assert batch.column("items").offsets.tolist() == [0]


def test_an_event_at_the_very_instant_is_not_seen_unless_the_view_says_so(features: Features) -> None:
    push(features, user_id=[1, 1, 1], item_id=["i0", "i1", "i2"], time=[T, T + 5, T + 5])
    batch = features.history("boundary", {"user_id": [1, 1, 1], "time": [T, T + 5, T + 6]})
    assert batch.column("fresh_n").values.tolist() == [0, 1, 3]
    assert batch.column("equal_n").values.tolist() == [1, 3, 3]
    assert sequence(batch, "equal_items", 1) == ["i0", "i1", "i2"]
    assert sequence(batch, "fresh_items", 1) == ["i0"]


def test_events_of_one_instant_keep_the_order_of_the_log(features: Features) -> None:
    push(features, user_id=[1, 1], item_id=["i3", "i1"], time=[T, T])
    push(features, user_id=[1, 1], item_id=["i2", "i0"], time=[T - 1, T])
    expected = ["i2", "i3", "i1", "i0"]
    assert sequence(features.history("users", {"user_id": [1], "time": [T + 1]}), "items", 0) == expected
    assert sequence(features.online("users", {"user_id": [1]}), "items", 0) == expected


def test_unknown_and_missing_users_are_cold(features: Features) -> None:
    push(features, user_id=[1], time=[T])
    for batch in (
        features.history("users", {"user_id": [77, None, 1], "time": [T + 1] * 3}),
        features.online("users", {"user_id": [77, None, 1]}),
    ):
        assert batch.newest.tolist() == [-1, -1, T]
        assert batch.column("n").values.tolist() == [0, 0, 1]
        assert np.isnan(batch.column("recency").values).tolist() == [True, True, False]
        assert batch.column("country").values[:2].tolist() == [1, 0]  # unknown, and nobody


@pytest.mark.parametrize(
    "make",
    [
        lambda columns: columns,
        lambda columns: pa.table(columns),
        lambda columns: pd.DataFrame(columns),
        lambda columns: pl.DataFrame(columns),
        lambda columns: [dict(zip(columns, row)) for row in zip(*columns.values())],
    ],
    ids=["mapping", "arrow", "pandas", "polars", "records"],
)
def test_rows_may_be_any_table(features: Features, make: Any) -> None:
    push(features, user_id=[1, 2, 2], time=[T, T, T])
    columns = {"user_id": [2, 1], "time": [T + 1, T + 1]}
    assert features.history("users", make(columns)).column("n").values.tolist() == [2, 1]


def test_context_columns_are_carried_in_their_dtype(features: Features) -> None:
    rows = {"user_id": [1, 2], "time": [T, T], "price": [1, 2], "shelf": ["a", "b"]}
    batch = features.history("users", rows, {"price": "float64", "shelf": "object"})
    assert batch.column("price").values.dtype == np.float64
    assert batch.column("shelf").values.tolist() == ["a", "b"]
    with pytest.raises(UsageError, match="no context column 'colour'; they have: user_id, time, price, shelf"):
        features.online("users", rows, context={"colour": "object"})


def test_columns_are_stored_once_an_entity(features: Features) -> None:
    push(features, user_id=[1, 2], time=[T, T])
    rows = {"user_id": [1] * 50 + [2] * 50, "item_id": [f"i{n % 8}" for n in range(100)], "campaign_id": [7] * 100}
    batch = features.online("shop", rows)
    assert len(batch.stored("items")[1]) == 2
    assert len(batch.stored("category")[1]) == 8
    assert len(batch.stored("pair_n")[1]) == 16


# Time


def test_times_may_be_numbers_or_instants_of_any_zone(features: Features) -> None:
    push(features, user_id=[1], time=[T])
    moment = datetime.fromtimestamp(T / shop.SECOND, UTC) + timedelta(microseconds=1)
    tokyo = moment.astimezone(timezone(timedelta(hours=9)))
    for times in ([T + 1], [moment], [tokyo], pa.array([(T + 1) * 1000 + 999], pa.timestamp("ns", "Europe/Paris"))):
        batch = features.history("users", {"user_id": [1], "time": times})
        assert (batch.as_of.tolist(), batch.column("n").values.tolist()) == ([T + 1], [1])
    assert features.online("users", {"user_id": [1]}, at=tokyo).as_of.tolist() == [T + 1]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([datetime(2020, 1, 1)], "no timezone; expected UTC"),
        ([None], "1 nulls"),
        (["2020-01-01"], "is string; expected timestamps"),
        ([1.5], "is double; expected timestamps"),
    ],
)
def test_times_that_are_no_instants_are_refused(features: Features, times: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        features.history("users", {"user_id": [1], "time": times})


def test_a_naive_instant_is_refused_online(features: Features) -> None:
    with pytest.raises(UsageError, match="has no timezone"):
        features.online("users", {"user_id": [1]}, at=datetime(2020, 1, 1))


# What cannot be meant


def test_what_is_missing_is_named_with_what_there_is(features: Features) -> None:
    with pytest.raises(UsageError, match="no column 'time'; they have: user_id"):
        features.history("users", {"user_id": [1]})
    with pytest.raises(UsageError, match="no column 'user_id', the key of 'user_sequence'; they have: user, time"):
        features.history("users", {"user": [1], "time": [T]})
    with pytest.raises(
        UsageError, match="unknown feature service 'userz'; choose one of: boundary, items, mixed, shop, tastes, users"
    ):
        features.online("userz", {"user_id": [1]})
    with pytest.raises(UsageError, match="columns differ in length"):
        features.online("users", {"user_id": [1, 2], "time": [T]})
    with pytest.raises(UsageError, match="rows are a str"):
        features.online("users", "1")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ({"user_id": ["1"]}, "user_id"),
        ({"user_id": [1.5]}, "user_id"),
        ({"user_id": [1], "item_id": [3], "campaign_id": [7]}, "item_id"),
        ({"user_id": [1], "item_id": ["i1"], "campaign_id": ["7"]}, "campaign_id"),
    ],
)
def test_an_identifier_of_the_wrong_type_is_an_error_and_no_cold_user(features: Features, rows: Any, named: str) -> None:
    push(features, user_id=[1], time=[T])
    service = "shop" if len(rows) > 1 else "users"
    with pytest.raises(UnknownIdError, match=named):
        features.online(service, rows)
    with pytest.raises(UnknownIdError, match=named):
        features.history(service, {**rows, "time": [T]})


def test_whole_numbers_kept_as_floats_are_the_same_users(features: Features) -> None:
    push(features, user_id=[1, 2], time=[T, T])
    assert features.online("users", pd.DataFrame({"user_id": [1.0, np.nan, 2.0]})).newest.tolist() == [T, -1, T]


def test_a_file_backed_view_is_left_to_feast(features: Features) -> None:
    with pytest.raises(FeatureError, match="'credit' is made of a FileSource"):
        features.online("mixed", {"user_id": [1]})


def test_a_folder_that_is_no_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"no feature_store\.yaml in .*zoo init"):
        Features.open(tmp_path)
    for text in ("project: [", "project: shop\nprovider: local\nonline_store:\n  type: zoo.stores.NoSuchStore\n"):
        (tmp_path / "feature_store.yaml").write_text(text)
        with pytest.raises(FeatureError, match=r"feature_store\.yaml cannot be used"):
            Features.open(tmp_path)


def test_a_repository_without_a_log_or_with_another_offline_store_is_told_so(repo: Path) -> None:
    text = shop.settings()
    (repo / "feature_store.yaml").write_text(text.replace("data/log", "data/nothing"))
    with pytest.raises(Exception, match=r"no event log in .*data/nothing; .zoo ingest FILE. makes"):
        Features.open(repo).online("users", {"user_id": [1]})
    other = text.replace("zoo.stores.EventLogOfflineStore", "dask").replace("  log: data/log\n  clock: log_end\n", "")
    (repo / "feature_store.yaml").write_text(other)
    with pytest.raises(FeatureError, match=r"offline store 'dask'; event features need type: zoo\.stores\.EventLogOfflineStore"):
        Features.open(repo)


# Pushing, and the functions of the module


def test_the_module_functions_do_as_the_object_does(repo: Path) -> None:
    rows = {"user_id": [1, 2]}
    events = shop.events_table(shop.random_events(np.random.default_rng(0), 30))
    assert zoo.features.append(events, repo=repo).added == 30
    assert zoo.features.append(events, repo=repo).repeated == 30
    features = Features.open(repo)
    shop.assert_same(zoo.features.online("users", rows, repo=repo), features.online("users", rows))
    times = {**rows, "time": [shop.END, shop.END]}
    shop.assert_same(zoo.features.history("users", times, repo=repo), features.history("users", times))
    assert zoo.features.materialize(repo)["user_id"] == 5


def test_apply_registers_the_definitions_and_leaves_other_modules_alone(tmp_path: Path) -> None:
    import sys

    (tmp_path / "data").mkdir()
    (tmp_path / "feature_store.yaml").write_text(shop.settings())
    (tmp_path / "definitions.py").write_text("raise ImportError('not of this repository')")
    mine = sys.modules["definitions"] = type(sys)("definitions")  # a module of that name from somewhere else
    try:
        with pytest.raises(FeatureError, match=r"definitions.py, line 1: ImportError: not of this repository"):
            zoo.features.apply(tmp_path)
        (tmp_path / "definitions.py").write_text(shop.DEFINITIONS.split("user_sequence =")[0])
        assert zoo.features.apply(tmp_path) == ()
        (tmp_path / "definitions.py").write_text(shop.DEFINITIONS)
        assert zoo.features.apply(tmp_path) == ("boundary", "items", "mixed", "shop", "tastes", "users")
        assert sys.modules["definitions"] is mine
        assert str(tmp_path) not in sys.path
    finally:
        del sys.modules["definitions"]


def test_events_from_the_future_are_quarantined_and_counted(features: Features) -> None:
    far = 4_000_000_000 * shop.SECOND
    report = features.append(
        shop.events_table({"event_id": ["a", "b"], "user_id": [1, 1], "event_type": ["view"] * 2, "time": [T, far]})
    )
    assert (report.added, dict(report.quarantined)) == (1, {"timestamp_after_now": 1})
    assert features.online("users", {"user_id": [1]}).newest.tolist() == [T]


def test_the_schema_hash_is_that_of_the_features_and_changes_with_them(repo: Path) -> None:
    first = {name: Features.open(repo).schema_hash(name) for name in ("users", "items")}
    text = (repo / "definitions.py").read_text()
    (repo / "definitions.py").write_text(text.replace('count("n_7d", "7d")', 'count("n_7d", "8d")'))
    zoo.features.apply(repo)
    changed = {name: Features.open(repo).schema_hash(name) for name in ("users", "items")}
    assert changed["users"] != first["users"]
    assert changed["items"] == first["items"]


@pytest.mark.parametrize("time", [-(2**63), 2**63 - 1])
def test_a_time_of_no_year_is_refused_with_the_range(features: Features, time: int) -> None:
    push(features, user_id=[1], time=[T])
    with pytest.raises(UsageError, match="no instant of the years 1 to 9999; expected microseconds UTC from -621"):
        features.history("users", {"user_id": [1], "time": [time]})
    with pytest.raises(UsageError, match="no instant of the years 1 to 9999"):
        features.history("users", {"user_id": [1], "time": pa.array([2**64 - 1], pa.uint64())})
    for at in (time, 2**70):
        with pytest.raises(UsageError, match=f"at is {at}, which is no instant of the years 1 to 9999"):
            features.online("users", {"user_id": [1]}, at=at)


def test_a_table_of_items_that_is_gone_is_said(features: Features) -> None:
    push(features, user_id=[1], item_id=["i0"], time=[T])
    shutil.rmtree(features.reader.log.root / "tables" / "items")
    with pytest.raises(FeatureError, match=r"'items\.category' is a column of the table of items, and the log has none"):
        features.history("users", {"user_id": [1], "time": [T + 1]})


def test_apply_refuses_identifiers_of_another_type_than_the_logs(repo: Path) -> None:
    path = repo / "definitions.py"
    text = path.read_text()
    path.write_text(text.replace("item_id=String, text", "item_id=Int64, text"))
    with pytest.raises(FeatureError, match=r"declares '\w+' as .*Int64.*, but the log's item_id is of type string"):
        zoo.features.apply(repo)
    path.write_text(text.replace("value_type=ValueType.INT64", "value_type=ValueType.STRING", 1))
    with pytest.raises(FeatureError, match="declares 'user_id' as String, but the log's user_id is of type int; declare Int64"):
        zoo.features.apply(repo)
    path.write_text(text)
    assert "users" in zoo.features.apply(repo)
