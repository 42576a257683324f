"""History of random (household, time) rows with two aligned lists of 50: ours against Feast's DuckDB store, ``make bench-features``.

Ours answers from the event log through ``store.get_historical_features(...).to_arrow()``. The peer gets what it needs to give the same
answer, a snapshot of both lists for every event; neither our index nor its snapshots are counted, being made beforehand. It runs in an
environment of its own, made once in ``.peers``. 100,000 rows took it 126 s and 20 GB, so it is asked for fewer; the ratio is at equal
rows. A basket's lines share one instant, at which Feast takes any of their snapshots: so the peer is also given only the last one of
each instant, which is a tenth of the snapshots and lets its answers be compared with ours.
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
    """Snapshots of both lists after every purchase, and after the last purchase of every instant; and the entity rows."""
    from zoo.events.index import SCALE

    index = view.index("user_id")
    bought = np.flatnonzero(index.column("event_type") == view.event_types()["purchase"])
    users, times = index.entity_of()[bought], index.time[bought]
    first = np.searchsorted(users, users, side="left")
    length = np.minimum(np.arange(len(bought)) - first + 1, 50)
    items = np.asarray(view.log.dictionary("item_id").decode(index.column("item_id")[bought]))
    values = index.column("value")[bought] / SCALE
    ids = np.asarray(view.log.dictionary("user_id").decode(users))
    last = np.append((np.diff(users) != 0) | (np.diff(times) != 0), True)
    for name, rows in (("event", np.arange(len(bought))), ("instant", np.flatnonzero(last))):
        write_snapshots(folder / f"{name}.parquet", rows, times, length, ids, items, values)
    entity_rows.to_parquet(folder / "rows.parquet")


def write_snapshots(path: Path, rows: Any, times: Any, length: Any, ids: Any, items: Any, values: Any) -> None:
    """The lists that end at these positions of the sorted purchases."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema()) as writer:
        for at in range(0, len(rows), 200_000):
            part = rows[at : at + 200_000]
            offsets = np.concatenate(([0], np.cumsum(length[part]))).astype(np.int32)
            flat = np.arange(offsets[-1]) + np.repeat(part - length[part] + 1 - offsets[:-1], length[part])
            lists = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(column[flat])) for column in (items, values)]
            columns = [pa.array(ids[part]), pa.array(times[part], pa.timestamp("us", "UTC")), *lists]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema()))


def schema() -> Any:
    import pyarrow as pa

    lists = [("items", pa.list_(pa.int64())), ("values", pa.list_(pa.float64()))]
    return pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.timestamp("us", "UTC")), *lists])


def same_answers(path: Path, ours: Any) -> int:
    """How many of the peer's rows hold the lists that ours hold for the same household and time; no list is as good as an empty one."""
    import polars as pl

    keys = ["user_id", "event_timestamp"]

    def lists(frame: Any) -> Any:
        filled = frame.select(*keys, pl.col("items").fill_null([]), pl.col("values").fill_null([]))
        return filled.with_columns(pl.col("event_timestamp").dt.cast_time_unit("us"))

    both = lists(pl.read_parquet(path)).join(lists(pl.from_arrow(ours)).unique(keys), on=keys, suffix="_ours")
    return int(both.select((pl.col("items") == pl.col("items_ours")) & (pl.col("values") == pl.col("values_ours"))).sum().item())


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

        def ours(count: int) -> tuple[float, tuple[float, float], Any]:
            """(median seconds of five runs, the fastest and the slowest, the answers)."""
            took = []
            for _ in range(5):
                started = time.perf_counter()
                job = features.store.get_historical_features(rows.head(count), ["sequence:items", "sequence:values"])
                table = job.to_arrow()
                took.append(time.perf_counter() - started)
            assert table.num_rows == count
            return float(np.median(took)), (min(took), max(took)), table

        (many, many_span, _), (few, few_span, answers) = ours(ROWS), ours(PEER_ROWS)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        write_peer_data(folder, view, rows)
        peers = {}
        for kind in ("event", "instant"):
            command = [peer_python(), HERE / "feast_duckdb_peer.py", folder, str(PEER_ROWS), kind]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
            peers[kind] = json.loads(said) | {"same": same_answers(folder / f"{kind}-answers.parquet", answers)}
    peer, fair = peers["event"], peers["instant"]
    reached = peer["seconds"] / few >= 100
    name = "Feast DuckDB store over per-event snapshots"
    figures = [
        Figure(
            id="history",
            what=f"history of {PEER_ROWS:,} rows, two lists of 50, demo data (median of 5 runs; interval: fastest and slowest)",
            ours=few,
            peer=peer["seconds"],
            peer_name=name,
            unit="s",
            interval=few_span,
            seeds=(SEED,),
            must="at least 100 times faster",
            reached=reached,
            why="" if reached else "see the ratio",
        ),
        Figure(
            id="history",
            what=f"the same, the peer over snapshots of the last event at each instant only ({fair['same']:,} of its answers are ours)",
            ours=few,
            peer=fair["seconds"],
            peer_name="Feast DuckDB store over per-instant snapshots",
            unit="s",
            interval=few_span,
            seeds=(SEED,),
        ),
        Figure(
            id="history",
            what=f"the same, rows answered of {PEER_ROWS:,} (over per-event snapshots {peer['same']:,} of the peer's answers are ours)",
            ours=answers.num_rows,
            peer=peer["returned"],
            peer_name=name,
            lower_is_better=False,
            unit="rows",
            seeds=(SEED,),
        ),
        Figure(
            id="history",
            what=f"history of {ROWS:,} rows, two lists of 50, demo data (as above)",
            ours=many,
            unit="s",
            interval=many_span,
            seeds=(SEED,),
        ),
        Figure(
            id="history",
            what=f"peak memory of the whole process (ours {ROWS:,} rows, peer {PEER_ROWS:,})",
            ours=memory,
            peer=peer["peak_mb"],
            peer_name=name,
            unit="MB",
            seeds=(SEED,),
        ),
    ]
    report("features", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
