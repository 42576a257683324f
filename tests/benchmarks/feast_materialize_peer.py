"""Feast's own materialize into its SQLite or Redis store, timed in an environment of its own (no zoo in it).

``python feast_materialize_peer.py FOLDER TABLE STORE URL LATEST``: FOLDER holds TABLE.parquet, snapshots of users' lists and windows.
LATEST: 1 for ``pull_latest_features``, 0 for Feast's default, which writes every snapshot. Prints one JSON line.
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


def main(folder: Path, table: str, kind: str, url: str, latest: bool) -> None:
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
        materialization={"pull_latest_features": latest},
        entity_key_serialization_version=3,
    )
    Path(config.registry.path).unlink(missing_ok=True)
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(name="snapshots", path=str(folder / f"{table}.parquet"), timestamp_field="event_timestamp")
    windows = [f for f in pq.read_schema(folder / f"{table}.parquet") if f.name not in (*LISTS, "user_id", "event_timestamp")]
    groups = {
        "sequence": [Field(name=name, dtype=dtype) for name, dtype in LISTS.items()],
        "windows": [Field(name=f.name, dtype=PLAIN[f.type]) for f in windows],
    }
    views = [
        FeatureView(name=name, entities=[user], ttl=timedelta(days=3650), source=source, schema=fields)
        for name, fields in groups.items()
    ]
    store.apply([user, *views])
    started, cpu = time.perf_counter(), time.process_time()
    store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    user_id = pq.read_table(folder / f"{table}.parquet", columns=["user_id"])["user_id"][0].as_py()
    names = [f"{name}:{field.name}" for name, fields in groups.items() for field in fields]
    answer = store.get_online_features(names, [{"user_id": user_id}]).to_dict()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "answer": answer}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5] == "1")
