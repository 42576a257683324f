"""Our side of ``make bench-features``, one measurement a process: ``python features_ours.py CASE WHAT [ROWS RUNS]``.

CASE is a folder that ``features_cases`` made. WHAT: ``lists`` or ``windows`` (history), ``ingest`` (files to log to index),
``sqlite`` or ``redis`` (materialize), ``newest`` (the peer's table for it). Prints one JSON line; history and materialize also write
answers to CASE/ours-WHAT.parquet.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from measured import measure, say

VIEWS = {"lists": ("sequence", ("items", "values")), "windows": ("windows", None)}
COMPARED = 1_000
"""Users whose online answers are compared with the peer's."""


def history(case: Path, what: str, rows: int, runs: int) -> dict[str, Any]:
    import pandas as pd
    import pyarrow.parquet as pq

    from zoo.features import Features

    features = Features.open(case / "repo")
    entity_rows = pd.read_parquet(case / "rows.parquet").head(rows)
    view, names = VIEWS[what]
    names = names or [f.name for f in features.store.get_feature_view(view).features]
    references = [f"{view}:{name}" for name in names]
    features.reader.view().partitions("user_id")  # opening the index belongs to no run
    found, table = measure(lambda: features.store.get_historical_features(entity_rows, references).to_arrow(), runs)
    pq.write_table(table, case / f"ours-{what}.parquet")
    return {**found, "rows": table.num_rows, "output_mb": table.nbytes / 1e6}


def ingested(case: Path) -> dict[str, Any]:
    """Seconds of ingest and of the index of both entity kinds, and the process's peak memory."""
    from zoo.events.ingest import ingest
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema
    from zoo.events.tables import ENTITIES
    from zoo.events.view import LogView

    root = case / "repo" / "log"
    shutil.rmtree(root, ignore_errors=True)
    log = EventLog.create(root, LogSchema(timezone="UTC", event_types=("view", "cart", "purchase")))
    started = time.perf_counter()
    report = ingest(log, sorted((case / "files").glob("*.parquet")))
    middle = time.perf_counter()
    view = LogView.open(root)
    for entity in ENTITIES:
        view.partitions(entity)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"added": report.added, "ingest": middle - started, "index": ended - middle, "peak_mb": peak}


def materialized(case: Path, store: str, url: str) -> dict[str, Any]:
    """Seconds to copy every user to an empty online store, and afterwards the first users' answers, to CASE/ours-STORE.parquet.

    ``newest`` in place of a store: only the peer's table, CASE/newest.parquet, every user's features at the log's end.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from features_cases import write_repository

    from zoo.features import Features, apply

    repo = case / f"repo-{store}"
    shutil.rmtree(repo, ignore_errors=True)
    write_repository(repo, case / "repo" / "log", "redis" if store == "redis" else "sqlite", url, "materialize_repo")
    apply(repo)
    features = Features.open(repo)
    view = features.reader.view()
    view.partitions("user_id")  # the index is there before either store is filled
    users = view.ids("user_id", np.arange(2, view.size("user_id")))
    views = [features.store.get_feature_view(name) for name in ("sequence", "windows")]
    references = [f"{v.name}:{f.name}" for v in views for f in v.features]
    if store == "newest":
        at = pa.array([features.reader.now()] * len(users), pa.timestamp("us", "UTC"))
        rows = pa.table({"user_id": users, "event_timestamp": at}).to_pandas()
        pq.write_table(features.store.get_historical_features(rows, references).to_arrow(), case / "newest.parquet")
        return {"users": len(users)}
    started = time.perf_counter()
    copied = features.materialize()
    seconds = time.perf_counter() - started
    answer = features.store.get_online_features(references, [{"user_id": user} for user in users[:COMPARED]]).to_dict()
    pq.write_table(pa.table(answer), case / f"ours-{store}.parquet")
    return {"seconds": seconds, "copied": copied}


if __name__ == "__main__":
    folder, kind, *rest = Path(sys.argv[1]), *sys.argv[2:]
    if kind == "ingest":
        say(ingested(folder))
    elif kind in VIEWS:
        say(history(folder, kind, int(rest[0]), int(rest[1])))
    else:
        say(materialized(folder, kind, rest[0] if rest else ""))
