"""What ``make bench-features`` measures on, made once below ``.peers/logs`` and kept: logs, their indexes, entity rows, peers' copies.

A case is a folder: ``repo`` (a Feast repository with its log), ``rows.parquet`` (user_id, event_timestamp), ``events.parquet`` (what
peers get: sorted by user, time and seq), for generated logs ``files``, and ``ingest.json`` (what ingest and index took).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measured import child

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
CASES = ROOT / ".peers" / "logs"
SEED = 0


def write_repository(folder: Path, log: Path, store: str = "sqlite", url: str = "", views: str = "features_repo") -> None:
    """A repository of the definitions in ``views`` over a log."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / f"{views}.py", folder / "features.py")
    online = (
        f"  type: zoo.stores.RedisEventOnlineStore\n  connection_string: {url}\n"
        if store == "redis"
        else "  type: zoo.stores.SqliteEventOnlineStore\n  path: online.db\n"
    )
    (folder / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        "coerce_tz_aware: false\n"
        f"offline_store:\n  type: zoo.stores.EventLogOfflineStore\n  log: {log}\n  clock: log_end\nonline_store:\n{online}",
        encoding="utf-8",
    )


def demo() -> Path:
    """The demo's log, copied, and 100,000 random rows."""
    case = CASES / "demo"
    if not (case / "complete").exists():
        from zoo.cli.demo import Demo, event_log
        from zoo.cli.render import console
        from zoo.jobs import Serial
        from zoo.manager import plugins
        from zoo.project import Project

        project = Project.open(ROOT / "feature_repo")
        event_log(Demo(project, plugins(), Serial(), console(sys.stderr)))
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(project.data / "log", case / "repo" / "log", ignore=shutil.ignore_patterns("index"))
        _finish(case, rows=100_000, where="purchase")
    write_repository(case / "repo", case / "repo" / "log")  # whatever it was made of
    return case


def generated(events: int, rows: int) -> Path:
    """A generated log of this size, ingested and indexed in a process of its own."""
    case = CASES / f"generated-{events}"
    if not (case / "complete").exists():
        if not (case / "written").exists():
            import generate

            shutil.rmtree(case, ignore_errors=True)
            generate.write(case / "files", events, SEED)
            (case / "written").touch()
        found = child([sys.executable, HERE / "features_ours.py", case, "ingest"])
        (case / "ingest.json").write_text(json.dumps(found), encoding="utf-8")
        _finish(case, rows, where=None if events <= 10_000_000 else "no peer")
    write_repository(case / "repo", case / "repo" / "log")  # as above
    return case


def _finish(case: Path, rows: int, where: str | None) -> None:
    from zoo.events.view import LogView
    from zoo.features import apply

    write_repository(case / "repo", case / "repo" / "log")
    apply(case / "repo")
    view = LogView.open(case / "repo" / "log")
    view.partitions("user_id")
    write_rows(case, view, rows)
    if where != "no peer":
        write_events(case, view, where)
    (case / "complete").touch()


def write_rows(case: Path, view: Any, number: int) -> None:
    """Users drawn evenly, at times drawn evenly from the log's span."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(SEED)
    users = view.log.dictionary("user_id")
    some = view.log.table(view.version, ["time"])["time"]
    first, last = (int(pa.compute.min_max(some)[name].as_py()) for name in ("min", "max"))
    codes = rng.integers(2, users.size, number).astype(np.int32)
    times = pa.array(rng.integers(first, last, number)).cast(pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user_id": users.decode(codes), "event_timestamp": times}), case / "rows.parquet")


def write_events(case: Path, view: Any, where: str | None) -> None:
    """The log as peers get it: sorted by user, time and seq, under its own identifiers."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = view.log.table(view.version, ["user_id", "item_id", "event_type", "time", "seq", "price", "value"])
    if where is not None:
        table = table.filter(pc.equal(table["event_type"], where))
    table = table.sort_by([("user_id", "ascending"), ("time", "ascending"), ("seq", "ascending")])
    pq.write_table(table.drop_columns(["event_type", "seq"]), case / "events.parquet")
