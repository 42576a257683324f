"""Ingesting and indexing a generated log of any size: seconds, peak memory of each step, and bytes against the log's Arrow columns.

``python tests/benchmarks/large_log.py EVENTS FOLDER`` keeps the files, the log and its index in FOLDER, goes on from what is there, and
prints one JSON object. Each step runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from generate import write


def index_bytes(root: Path | str, entity: str) -> int:
    """Bytes on disk of the index of an entity kind (``user_id`` or ``item_id``) of the log as it is now; built where it is not there."""
    from zoo.events.build import IndexStore
    from zoo.events.view import LogView

    view = LogView.open(root)
    view.partitions(entity)
    stored = IndexStore(Path(root) / "index").newest(entity, view.epoch, view.count)
    assert stored is not None
    return sum(path.stat().st_size for path in stored.folder.iterdir())


def arrow_bytes(root: Path | str) -> int:
    """Bytes of the columns that an index holds, uncompressed in Arrow, as the log's readers get them; at bounded memory.

    Columns without any value are left out, as the index leaves them out.
    """
    from zoo.events.encode import columns_of
    from zoo.events.log import EventLog

    log = EventLog.open(root)
    names = [name for name in columns_of(log) if name in log.filled()]
    return sum(table.nbytes for table in log.chunks(names))


def ingest(folder: Path) -> dict[str, Any]:
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema

    log = EventLog.create(folder / "log", LogSchema())
    report = log_report = None
    for path in sorted(folder.glob("events-*.parquet")):
        from zoo.events.ingest import ingest as take

        log_report = take(log, path)
        report = log_report if report is None else report.plus(log_report)
    assert report is not None
    return {"rows": report.rows, "added": report.added}


def index(folder: Path) -> dict[str, Any]:
    from zoo.events.view import LogView

    view = LogView.open(folder / "log")
    return {"partitions": len(view.partitions("user_id")), "events": view.count}


def sizes(folder: Path) -> dict[str, Any]:
    arrow = arrow_bytes(folder / "log")
    found = {entity: index_bytes(folder / "log", entity) for entity in ("user_id", "item_id")}
    return {"arrow": arrow, **found, **{f"{entity} / arrow": size / arrow for entity, size in found.items()}}


STEPS = {"ingest": ingest, "index": index, "sizes": sizes}


def main(events: int, folder: Path) -> None:
    if not list(folder.glob("events-*.parquet")):
        write(folder, events)
    out: dict[str, Any] = {"events": events}
    for step in STEPS:
        if step == "ingest" and (folder / "log").exists():
            continue
        command = [sys.executable, __file__, "--step", step, str(folder)]
        out[step] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "--step":
        began = time.monotonic()
        found = STEPS[sys.argv[2]](Path(sys.argv[3]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({**found, "seconds": time.monotonic() - began, "peak_gb": peak}))
    else:
        main(int(sys.argv[1]), Path(sys.argv[2]))
