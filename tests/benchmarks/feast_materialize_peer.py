"""Feast's own materialize into its SQLite or Redis store, timed in an environment of its own (no zoo in it).

``python feast_materialize_peer.py FOLDER STORE URL``: FOLDER holds newest.parquet, the newest snapshot of each user. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Float64, Int64


def main(folder: Path, kind: str, url: str) -> None:
    database = folder / "peer-online.db"
    database.unlink(missing_ok=True)
    online = {"type": "redis", "connection_string": url} if kind == "redis" else {"type": "sqlite", "path": str(database)}
    config = RepoConfig(
        project="peer",
        provider="local",
        registry=str(folder / f"peer-registry-{kind}.db"),
        offline_store={"type": "duckdb"},
        online_store=online,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="sequence",
        entities=[user],
        ttl=timedelta(days=3650),
        source=FileSource(name="snapshots", path=str(folder / "newest.parquet"), timestamp_field="event_timestamp"),
        schema=[Field(name="items", dtype=Array(Int64)), Field(name="values", dtype=Array(Float64))],
    )
    store.apply([user, view])
    started = time.perf_counter()
    store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
