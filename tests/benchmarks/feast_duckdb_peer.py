"""Feast's own DuckDB offline store over per-event snapshots, timed in an environment of its own (no zoo in it).

``python feast_duckdb_peer.py FOLDER ROWS NAME``: FOLDER holds NAME.parquet (snapshots: user_id, event_timestamp, items, values) and
rows.parquet. Writes NAME-answers.parquet and prints one JSON line: seconds and peak memory of ``get_historical_features(...).to_arrow()``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Float64, Int64


def main(folder: Path, rows: int, name: str) -> None:
    config = RepoConfig(
        project="peer",
        provider="local",
        registry=str(folder / f"registry-{name}.db"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="sequence",
        entities=[user],
        ttl=timedelta(days=3650),
        source=FileSource(name="snapshots", path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp"),
        schema=[Field(name="items", dtype=Array(Int64)), Field(name="values", dtype=Array(Float64))],
    )
    store.apply([user, view])
    entity_rows = pd.read_parquet(folder / "rows.parquet").head(rows)
    started = time.perf_counter()
    table = store.get_historical_features(entity_df=entity_rows, features=["sequence:items", "sequence:values"]).to_arrow()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    pq.write_table(table, folder / f"{name}-answers.parquet")
    print(json.dumps({"rows": rows, "returned": table.num_rows, "seconds": seconds, "peak_mb": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
