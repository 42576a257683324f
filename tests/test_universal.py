"""What Feast checks of every offline store (its ``sdk/python/tests/universal/offline_store``, 0.67), asked of ours.

``docs/reference/features.md`` says which of those checks do not apply, and why.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny_shop as shop
from feast import FeatureService, FeatureStore, FeatureView
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from tiny_shop import _applied, repo

from zoo.errors import FeatureError, UsageError
from zoo.features import Features

__all__ = ["_applied", "repo"]

NUMBER = 60


@pytest.fixture
def features(repo: Path) -> Features:
    """A shop with random events."""
    found: Features = shop.opened(repo)
    found.append(shop.events_table(shop.random_events(np.random.default_rng(1), NUMBER)))
    return found


def at(*microseconds: int) -> pd.DatetimeIndex:
    return pd.to_datetime(list(microseconds), unit="us", utc=True)


def entities(number: int = 12) -> pd.DataFrame:
    """Entity rows in no order, two of them the same, with columns that no view knows."""
    rng = np.random.default_rng(2)
    rows: dict[str, Any] = shop.keys(rng, number)
    rows |= {"order_id": np.arange(number), "val_to_add": rng.normal(size=number)}
    rows["event_timestamp"] = at(*(shop.START + rng.integers(0, 60 * 24, number) * shop.DAY // 24))
    frame = pd.DataFrame(rows)
    return pd.concat([frame, frame.iloc[[3]]], ignore_index=True)


def expected(features: Features, service: str, frame: pd.DataFrame, name: str) -> list[Any]:
    """A feature by our own reading, as text or numbers."""
    rows = {c: frame[c].tolist() for c in ("user_id", "item_id", "campaign_id")}
    column = features.history(service, {**rows, "time": frame["event_timestamp"].tolist()}).column(name)
    names = features.reader.view().names(column.dictionary) if column.dictionary else None
    shown = [None if v == 0 else str(names[v]) for v in column.values] if names is not None else column.values.tolist()
    return shown if column.offsets is None else [shown[a:b] for a, b in zip(column.offsets, column.offsets[1:])]


@pytest.mark.parametrize("full", [True, False])
def test_historical_features_main(features: Features, full: bool) -> None:
    frame = entities()
    refs = ["user_windows:n", "user_windows:spend", "user_sequence:items", "item_windows:item_n_7d", "overlap:overlap_n"]
    job = features.store.get_historical_features(frame, refs, full_feature_names=full)
    names = [ref.replace(":", "__") if full else ref.partition(":")[2] for ref in refs]
    found = job.to_df()
    assert list(found.columns) == [*frame.columns, *names]
    pd.testing.assert_frame_equal(found[list(frame.columns)], frame)  # rows, repeats and further columns, in their order
    table = job.to_arrow()
    for ref, name in zip(refs, names):
        assert table[name].to_pylist() == expected(features, "shop", frame, ref.partition(":")[2])


@pytest.mark.parametrize("full", [True, False])
def test_historical_features_of_a_service_and_of_one_view_under_two_names(features: Features, full: bool) -> None:
    store: FeatureStore = features.store
    items = store.get_feature_view("item_windows")[["item_n_7d"]]
    names = ("origin", "destination")
    service = FeatureService(
        name="mapped", features=[items.with_name(name).with_join_key_map({"item_id": f"{name}_id"}) for name in names]
    )
    store.apply([service])
    frame = entities().rename(columns={"item_id": "origin_id"})
    frame["destination_id"] = frame["origin_id"].tolist()[::-1]
    found = store.get_historical_features(frame, service, full_feature_names=True).to_df()
    for name in names:
        wanted = expected(features, "items", frame.assign(item_id=frame[f"{name}_id"]), "item_n_7d")
        assert found[f"{name}__item_n_7d"].tolist() == wanted
    whole = store.get_historical_features(entities(), store.get_feature_service("users"), full_feature_names=full).to_df()
    prefix = "user_late__" if full else ""
    assert whole[f"{prefix}late_n_7d"].tolist() == expected(features, "users", entities(), "late_n_7d")


@pytest.mark.parametrize("full", [True, False])
def test_historical_features_with_shared_batch_source(features: Features, full: bool) -> None:
    store: FeatureStore = features.store
    windows = store.get_feature_view("user_windows")
    views = [
        FeatureView(name=name, entities=[store.get_entity("user")], schema=schema, source=windows.batch_source)
        for name, schema in (("v1", windows.features[:1]), ("v2", windows.features[:2]))  # its schema has the key, too, anywhere
    ]
    store.apply(views)
    second = windows.features[1].name
    with pytest.raises(KeyError):  # the source has it, the view does not
        store.get_historical_features(entities(), [f"v1:{second}"], full_feature_names=full).to_df()
    refs = [f"v1:{windows.features[0].name}", f"v2:{second}"]
    assert len(store.get_historical_features(entities(), refs, full_feature_names=full).to_df()) == len(entities())


def test_historical_features_with_entities_from_query_or_from_nothing_are_refused(features: Features) -> None:
    with pytest.raises(UsageError, match="entity_df is str; expected a pandas DataFrame"):
        features.store.get_historical_features("SELECT user_id, event_timestamp FROM orders", ["user_windows:n"])
    with pytest.raises(UsageError, match="needs rows to answer for"):
        features.store.get_historical_features(
            None, ["user_windows:n"], start_date=at(shop.START)[0].to_pydatetime(), end_date=at(shop.END)[0].to_pydatetime()
        )


def test_historical_features_persisting(features: Features, tmp_path: Path) -> None:
    job = features.store.get_historical_features(entities(), ["user_windows:n", "user_sequence:items"])
    storage = SavedDatasetFileStorage(path=str(tmp_path / "kept.parquet"))
    saved = features.store.create_saved_dataset(job, "kept", storage, tags={"env": "test"})
    pd.testing.assert_frame_equal(saved.to_df()[["user_id", "n"]], job.to_df()[["user_id", "n"]])
    assert saved.min_event_timestamp == entities()["event_timestamp"].min()
    assert pa.Table.from_pandas(saved.to_df())["items"].to_pylist() == job.to_arrow()["items"].to_pylist()
    with pytest.raises(UsageError, match="allow_overwrite"):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)


def test_historical_features_with_no_ttl(features: Features) -> None:
    store: FeatureStore = features.store
    view = store.get_feature_view("fresh")
    frame = entities().assign(event_timestamp=at(shop.END + 1000 * shop.DAY)[0])
    assert store.get_historical_features(frame, ["fresh:fresh_n"]).to_df()["fresh_n"].isna().any()
    view.ttl = timedelta(0)
    store.apply([view])
    assert (store.get_historical_features(frame, ["fresh:fresh_n"]).to_df()["fresh_n"] >= 0).all()


def test_historical_features_containing_backfills(features: Features) -> None:
    """An event that comes late changes answers after its time, and only those; one that comes again changes nothing."""
    times = [shop.START + n * shop.DAY for n in (5, 20, 21, 40, 61)]
    frame = pd.DataFrame({"user_id": 1, "event_timestamp": at(*times)})
    refs = ["user_windows:n", "user_sequence:values", "user_sequence:gaps", "user_windows:tenure"]

    def answers() -> list[dict[str, Any]]:
        table = features.store.get_historical_features(frame, refs).to_arrow()
        rows: list[dict[str, Any]] = table.drop_columns(["event_timestamp"]).to_pylist()
        return rows

    before = answers()
    late = {"event_id": ["late"], "user_id": [1], "event_type": ["view"], "item_id": ["i1"], "time": [times[1]], "value": [7.77]}
    features.append(shop.events_table(late))
    after = answers()
    assert [repr(row) for row in after[:2]] == [repr(row) for row in before[:2]]  # at the very instant it is not seen yet
    assert [b["n"] - a["n"] for a, b in zip(before, after)] == [0, 0, 1, 1, 1]
    assert after[2]["values"][-1] == 7.77
    assert features.append(shop.events_table(late | {"value": [8.88]})).added == 0
    assert repr(answers()) == repr(after)


@pytest.mark.parametrize("latest", [True, False])
def test_universal_materialization_consistency(features: Features, latest: bool) -> None:
    features.store.config.materialization_config.pull_latest_features = latest
    end = at(shop.END)[0]
    views = ["user_windows", "user_sequence", "user_more"]
    features.store.materialize((end - timedelta(days=1)).to_pydatetime(), end.to_pydatetime(), feature_views=views)
    refs = ["user_windows:n", "user_windows:spend", "user_sequence:items", "user_more:conversion"]
    frame = pd.DataFrame({"user_id": [1, 2, 3], "event_timestamp": at(features.reader.now())[0]})
    offline = features.store.get_historical_features(frame, refs).to_df()
    online = features.store.get_online_features(refs, frame[["user_id"]].to_dict("records")).to_df()
    for ref in refs:
        name = ref.partition(":")[2]
        assert [list(v) if isinstance(v, np.ndarray) else v for v in offline[name]] == online[name].tolist()


@pytest.mark.parametrize("view", ["user_sequence", "user_visits", "user_windows", "user_more", "item_windows", "user_profile"])
def test_feature_get_historical_features_types_match(features: Features, view: str) -> None:
    """Each column of an answer has the type that its view declares, whatever the rows."""
    from feast.types import Array, Float64, Int64, String

    kinds = {Int64: pa.int64(), Float64: pa.float64(), String: pa.string()}
    store: FeatureStore = features.store
    declared = store.get_feature_view(view).features
    for frame in (entities(), entities().iloc[:0]):
        found = store.get_historical_features(frame, [f"{view}:{f.name}" for f in declared]).to_arrow()
        for field in declared:
            wanted = pa.list_(kinds[field.dtype.base_type]) if isinstance(field.dtype, Array) else kinds[field.dtype]
            assert found.schema.field(field.name).type == wanted, field.name


# What Feast does not check: pairs of a user and a text attribute, through both stores


def test_pairs_of_a_user_and_an_attribute_of_items_answer_alike_offline_and_online(features: Features) -> None:
    kinds = [None, "tea", "milk", "bread", "wine"]
    rows = {"user_id": [u for u in range(1, 7) for _ in kinds], "category": kinds * 6, "colour": ["red"] * 30}
    now = features.reader.now()
    offline = features.history("tastes", {**rows, "time": [now] * 30})
    shop.assert_same(features.online("tastes", rows), offline)
    counts = offline.column("category_n").values.reshape(6, 5)
    assert counts[:, [0, 4]].sum() == 0  # no category, and one that nothing has
    known = features.history("users", {"user_id": list(range(1, 7)), "time": [now] * 6}).column("n").values
    assert 0 < counts.sum() <= known.sum()
    assert offline.column("colour_n").values.sum() > 0
    frame = pd.DataFrame({"user_id": [1], "category": ["tea"], "event_timestamp": at(now)})
    found = features.store.get_historical_features(frame, ["user_category:category_n", "user_category:category_items"]).to_df()
    assert found["category_n"].tolist() == [counts[0, 1]]
    assert set(found["category_items"][0]) <= {"i0", "i1", "i4"}


def test_a_row_without_a_time_is_refused(features: Features) -> None:
    frame = entities()
    frame.loc[[1, 4], "event_timestamp"] = pd.NaT
    service = features.store.get_feature_service(features.services()[0])
    with pytest.raises(FeatureError, match=r"2 nulls \(NaT\) in 13 rows.*leave those rows out"):
        features.store.get_historical_features(frame, service).to_df()


def test_a_column_named_like_a_feature_is_refused_unless_names_are_full(features: Features) -> None:
    frame = entities()
    service = features.store.get_feature_service(features.services()[0])
    name = service.feature_view_projections[0].features[0].name
    frame[name] = 7
    with pytest.raises(UsageError, match=f"entity_df has a column '{name}', which is a feature asked for"):
        features.store.get_historical_features(frame, service)
    found = features.store.get_historical_features(frame, service, full_feature_names=True).to_df()
    assert found.columns.is_unique
