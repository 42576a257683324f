"""What Feast is shown: the same, to the byte, as Feast's own slow conversion of the same columns, by its own slow way."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_shop as shop
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from tiny_shop import _applied, repo

from zoo.contract import Column
from zoo.stores.columns import chosen, to_arrow
from zoo.stores.online import EventOnlineStore
from zoo.stores.protos import key_columns, keys_of, write
from zoo.stores.reader import LogReader

__all__ = ["_applied", "repo"]

TEXTS = ["", "thé", "茶", "🫖", "plain", "e\u0301"]


def slow_read(self: Any, config: Any, table: Any, entity_keys: Any, requested_features: Any) -> list[Any]:
    """Feast's ``online_read``, a row and a value at a time."""
    if not hasattr(table.batch_source, "body"):
        return super(EventOnlineStore, self).online_read(config, table, entity_keys, requested_features)
    reader = LogReader.of(config)
    view, now = reader.view(), reader.now()
    keys = keys_of(view, key_columns(table, entity_keys))
    recent = self.recent(config, view, self.wanted(config, [(table.batch_source, keys)]))
    columns, newest = self.features(view, table.batch_source, keys, np.full(len(entity_keys), now), recent)
    if newest is None:
        held, newest = view.entity_table(table.batch_source.table), np.full(len(entity_keys), now)
        found = held.there.at(keys[held.key], newest).values
    else:
        found = newest >= 0
        if table.ttl:
            found &= now - newest <= table.ttl // timedelta(microseconds=1)
    kinds = {f.name: f.dtype.to_value_type() for f in table.features}
    shown = {
        name: python_values_to_proto_values(to_arrow(view, c).to_pylist(), kinds[name])
        for name, c in chosen(table, columns, requested_features).items()
    }
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return [
        (epoch + timedelta(microseconds=int(at)), {name: values[i] for name, values in shown.items()}) if there else (None, None)
        for i, (there, at) in enumerate(zip(found, newest))
    ]


def everyone() -> list[dict[str, Any]]:
    """Users, items and campaigns in no order, some unknown, some twice."""
    rng = np.random.default_rng(0)
    drawn = zip(rng.integers(1, 8, 30).tolist(), rng.integers(0, 10, 30).tolist(), rng.integers(6, 10, 30).tolist())
    return [{"user_id": user, "item_id": f"i{item}", "campaign_id": campaign} for user, item, campaign in drawn]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_response_is_the_one_that_feasts_own_way_makes(
    repo: Path, kind: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    day = pd.Timestamp(shop.START, unit="us", tz="UTC")
    credit = {
        "user_id": [1, 2, 3],
        "event_timestamp": [day] * 3,
        "created": [day] * 3,
        "limit": [1.0, None, 3.0],
        "rating": [*TEXTS[1:3], None],
    }
    pd.DataFrame(credit).to_parquet(repo / "credit.parquet")
    features = shop.opened(repo, online=shop.SQLITE if kind == "sqlite" else redis_url)
    events = shop.random_events(np.random.default_rng(3), 120)
    events["colour"] = [TEXTS[n % len(TEXTS)] if colour is not None else None for n, colour in enumerate(events["colour"])]
    features.append(shop.events_table(events))
    store, rows = features.store, everyone()
    store.materialize(day.to_pydatetime(), day.to_pydatetime() + timedelta(days=5), feature_views=["credit"])
    rows = [{**row, "category": ["tea", "milk", "none"][n % 3], "colour": TEXTS[n % 6]} for n, row in enumerate(rows)]
    keys = {
        "users": ["user_id"], "items": ["item_id"], "boundary": ["user_id"], "mixed": ["user_id"],
        "shop": ["user_id", "item_id", "campaign_id"], "tastes": ["user_id", "category", "colour"],
    }  # fmt: skip

    def answers() -> list[bytes]:
        made = []
        for number, (name, asked) in enumerate(keys.items()):
            own, full = [{key: row[key] for key in asked} for row in rows], number % 2 == 0
            for part in (own, own[:1]):
                response = store.get_online_features(
                    store.get_feature_service(name), part, full, include_feature_view_version_metadata=full
                )
                made.append(response.proto.SerializeToString(deterministic=True))
        return made

    ours = answers()

    async def awaited() -> Any:
        found = await store.get_online_features_async(users, pair)
        await features.aclose()
        return found

    users, pair = store.get_feature_service("users"), [{"user_id": 1}, {"user_id": 9}]
    one, again = store.get_online_features(users, pair), asyncio.run(awaited())
    assert one.proto == again.proto
    online = type(features._online_store)
    monkeypatch.setattr(online, "_read_features_per_fv", OnlineStore._read_features_per_fv)
    assert answers() == ours  # row by row
    monkeypatch.setattr(online, "online_read", slow_read)
    assert answers() == ours
    assert list(one.proto.results[1].statuses) == [FieldStatus.PRESENT, FieldStatus.NOT_FOUND]


def test_every_type_is_written_as_feast_converts_it(repo: Path) -> None:
    features = shop.opened(repo)
    names = {"event_id": list("abcdef"), "user_id": [1] * 6, "item_id": [f"i{n}" for n in range(6)], "colour": TEXTS}
    features.append(shop.events_table({**names, "event_type": ["view"] * 6, "time": [shop.START] * 6}))
    view, rng = features.reader.view(), np.random.default_rng(1)
    ends = np.array([0, 3, 3, 4, 7])
    flats = {
        "floats": (rng.normal(size=7) * [1, 0, 1e300, -1, 1, 1, 1], None),
        "nulls": (np.where(np.arange(7) % 2, np.nan, 2.5), None),
        "none": (np.full(7, np.nan), None),
        "narrow": (rng.normal(size=7).astype(np.float32), None),
        "whole": (np.array([0, 1, -1, 2**53 + 1, -(2**62), 7, 2**31 - 1]), None),
        "small": (np.arange(7, dtype=np.int32), None),
        "unsigned": (np.arange(7, dtype=np.uint32), None),
        "flags": (np.arange(7) % 2 == 0, None),
        "users": (np.array([2, 0, 1, 2, 0, 2, 2], np.int32), "user_id"),
        "items": (np.array([2, 0, 1, 3, 0, 4, 2], np.int32), "item_id"),
        "colours": (np.array([2, 0, 3, 4, 5, 6, 7], np.int32), "colour"),
    }
    kinds = [kind for kind in ValueType if not kind.name.endswith("SET")]  # Feast puts a set's NaN where its address falls
    for kind, (name, (values, dictionary)) in itertools.product(kinds, flats.items()):
        for column in (Column(values, None, dictionary), Column(values, ends, dictionary), Column(values[:0], None, dictionary)):
            if column.is_sequence and name == "flags":
                continue
            found = (np.arange(len(column)) % 4 != 3).tolist()
            ours, theirs = GetOnlineFeaturesResponse.FeatureVector(), GetOnlineFeaturesResponse.FeatureVector()
            try:
                made = python_values_to_proto_values(to_arrow(view, column).to_pylist(), kind)
                theirs.values.extend(value if there else type(value)() for value, there in zip(made, found))
            except Exception as error:
                with pytest.raises(type(error)):
                    write(view, kind, column, found, ours.values)
            else:
                write(view, kind, column, found, ours.values)
                assert ours.SerializeToString() == theirs.SerializeToString(), (name, kind)
