"""Feast's own materialize into its SQLite or Redis store, timed in an environment of its own (no zoo in it).

``python feast_materialize_peer.py FOLDER STORE URL USERS``: FOLDER holds newest.parquet, one row a user: two lists and twelve windows.
Prints one JSON line, and writes the online answers of the first USERS users to FOLDER/peer-STORE.parquet.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Float64, Int64

LISTS = {"items": Array(Int64), "values": Array(Float64)}
PLAIN = {pa.int64(): Int64, pa.float64(): Float64}


def main(folder: Path, kind: str, url: str, users: int) -> None:
    database = folder / "peer-online.db"
    for path in folder.glob("peer-online.db*"):
        path.unlink()
    online = {"type": "redis", "connection_string": url} if kind == "redis" else {"type": "sqlite", "path": str(database)}
    config = RepoConfig(
        project="peer",
        provider="local",
        registry=str(folder / f"peer-registry-{kind}.db"),
        offline_store={"type": "duckdb"},
        online_store=online,
        entity_key_serialization_version=3,
    )
    Path(config.registry.path).unlink(missing_ok=True)
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(name="snapshots", path=str(folder / "newest.parquet"), timestamp_field="event_timestamp")
    windows = [f for f in pq.read_schema(folder / "newest.parquet") if f.name not in (*LISTS, "user_id", "event_timestamp")]
    groups = {
        "sequence": [Field(name=name, dtype=dtype) for name, dtype in LISTS.items()],
        "windows": [Field(name=f.name, dtype=PLAIN[f.type]) for f in windows],
    }
    views = [
        FeatureView(name=name, entities=[user], ttl=timedelta(days=3650), source=source, schema=fields)
        for name, fields in groups.items()
    ]
    store.apply([user, *views])
    started = time.perf_counter()
    store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    seconds = time.perf_counter() - started
    asked = pq.read_table(folder / "newest.parquet", columns=["user_id"])["user_id"][:users].to_pylist()
    names = [f"{name}:{field.name}" for name, fields in groups.items() for field in fields]
    answer = store.get_online_features(names, [{"user_id": user} for user in asked]).to_dict()
    pq.write_table(pa.table(answer), folder / f"peer-{kind}.parquet")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
