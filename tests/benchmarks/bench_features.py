"""History of random (household, time) rows with two aligned lists of 50: ours against Feast's DuckDB store, ``make bench-features``.

Ours answers from the event log through ``store.get_historical_features(...).to_arrow()``. The peer gets what it needs to give the same
answer, a snapshot of both lists for every event, made beforehand and not counted. It runs in an environment of its own, made once in
``.peers``. 100,000 rows took it 126 s and 20 GB, so it is asked for fewer; the ratio is at equal rows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure, report

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PEER = ROOT / ".peers" / "feast-duckdb"
ROWS = 100_000
PEER_ROWS = 1_000 if QUICK else 10_000
SEED = 0
FEATURES = """
from feast import Entity, FeatureView, ValueType
from zoo.events.specs import Aggregation, last_n
from zoo.stores import EventSource
from zoo.stores.source import schema_of

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
lists = Aggregation(
    ("user_id",), (last_n("items", "item_id", 50, where=("purchase",)), last_n("values", "value", 50, where=("purchase",)))
)
sequence = FeatureView(name="sequence", entities=[user], source=EventSource(name="lists", aggregation=lists), schema=schema_of(lists))
"""


def peer_python() -> Path:
    """The interpreter of the peer's environment, made the first time."""
    python = PEER / "bin" / "python"
    if not (PEER / "complete").exists():
        venv.create(PEER, with_pip=True, clear=True)
        pins = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, "feast[duckdb]==0.67.0"], check=True)
        (PEER / "complete").touch()
    return python


def write_repository(folder: Path, log: Path) -> None:
    (folder / "features.py").write_text(FEATURES, encoding="utf-8")
    (folder / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        f"offline_store:\n  type: zoo.stores.EventLogOfflineStore\n  log: {log}\n  clock: log_end\n"
        "online_store:\n  type: zoo.stores.SqliteEventOnlineStore\n  path: online.db\n",
        encoding="utf-8",
    )


def write_peer_data(folder: Path, view: Any, entity_rows: Any) -> None:
    """A snapshot of both lists after every purchase, and the entity rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from zoo.events.index import SCALE

    index = view.index("user_id")
    bought = np.flatnonzero(index.column("event_type") == view.event_types()["purchase"])
    users, times = index.entity_of()[bought], index.time[bought]
    first = np.searchsorted(users, users, side="left")
    length = np.minimum(np.arange(len(bought)) - first + 1, 50)
    items = np.asarray(view.log.dictionary("item_id").decode(index.column("item_id")[bought]))
    values = index.column("value")[bought] / SCALE
    ids = np.asarray(view.log.dictionary("user_id").decode(users))
    with pq.ParquetWriter(folder / "snapshots.parquet", schema()) as writer:
        for at in range(0, len(bought), 200_000):
            part = np.arange(at, min(at + 200_000, len(bought)))
            offsets = np.concatenate(([0], np.cumsum(length[part]))).astype(np.int32)
            flat = np.arange(offsets[-1]) + np.repeat(part - length[part] + 1 - offsets[:-1], length[part])
            lists = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(column[flat])) for column in (items, values)]
            columns = [pa.array(ids[part]), pa.array(times[part], pa.timestamp("us", "UTC")), *lists]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema()))
    entity_rows.to_parquet(folder / "rows.parquet")


def schema() -> Any:
    import pyarrow as pa

    lists = [("items", pa.list_(pa.int64())), ("values", pa.list_(pa.float64()))]
    return pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.timestamp("us", "UTC")), *lists])


def main() -> int:
    import pandas as pd

    from zoo.cli.demo import Demo, event_log
    from zoo.cli.render import console
    from zoo.features import Features, apply
    from zoo.jobs import Serial
    from zoo.manager import plugins
    from zoo.project import Project

    project = Project.open(ROOT / "feature_repo")
    event_log(Demo(project, plugins(), Serial(), console(sys.stderr)))
    with tempfile.TemporaryDirectory(prefix="bench-features-") as name:
        folder = Path(name)
        write_repository(folder, project.data / "log")
        apply(folder)
        features = Features.open(folder)
        view = features.reader.view()
        rng = np.random.default_rng(SEED)
        time_of = view.index("user_id").time
        codes = rng.integers(2, view.log.dictionary("user_id").size, ROWS).astype(np.int32)
        times = rng.integers(int(time_of.min()), int(time_of.max()), ROWS)
        rows = pd.DataFrame(
            {
                "user_id": np.asarray(view.log.dictionary("user_id").decode(codes)),
                "event_timestamp": pd.to_datetime(times, unit="us", utc=True),
            }
        )

        def ours(count: int) -> float:
            best = np.inf
            for _ in range(3):
                started = time.perf_counter()
                job = features.store.get_historical_features(rows.head(count), ["sequence:items", "sequence:values"])
                table = job.to_arrow()
                best = min(best, time.perf_counter() - started)
                assert table.num_rows == count
            return best

        few, many = ours(PEER_ROWS), ours(ROWS)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        write_peer_data(folder, view, rows)
        command = [peer_python(), HERE / "feast_duckdb_peer.py", folder, str(PEER_ROWS)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
        peer = json.loads(said)
    reached = peer["seconds"] / few >= 100
    figures = [
        Figure(
            id="history",
            what=f"history of {PEER_ROWS:,} rows, two lists of 50, demo data (peer returned {peer['returned']:,} rows)",
            ours=few,
            peer=peer["seconds"],
            peer_name="Feast DuckDB store over per-event snapshots",
            unit="s",
            seeds=(SEED,),
            must="at least 100 times faster",
            reached=reached,
            why="" if reached else "see the ratio",
        ),
        Figure(id="history", what=f"history of {ROWS:,} rows, two lists of 50, demo data", ours=many, unit="s", seeds=(SEED,)),
        Figure(
            id="history",
            what=f"peak memory of the whole process (ours {ROWS:,} rows, peer {PEER_ROWS:,})",
            ours=memory,
            peer=peer["peak_mb"],
            peer_name="Feast DuckDB store over per-event snapshots",
            unit="MB",
            seeds=(SEED,),
        ),
    ]
    report("features", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
