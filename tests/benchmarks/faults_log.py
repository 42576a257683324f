"""Kill a pushing and flushing process at random moments: ``python tests/benchmarks/faults_log.py [KILLS]`` (default 200).

After each kill, everything that was said to be taken must be in the log once; after a rerun, the log must hold what one clean run gives.
Prints the counts and keeps them in ``docs/benchmarks/faults_log.json``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from zoo.events.log import EventLog
from zoo.events.schema import LogSchema

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
import pyarrow as pa
from zoo.events import flush
from zoo.events.log import EventLog
flush.ROWS = 20
log, start, stop = EventLog.open(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for i in range(start, stop):
    price = [float("inf") if i % 7 == 3 else 1.0, 2.0, 3.0]
    table = pa.table({
        "user_id": [i, i % 5, 0], "item_id": [i % 11, i, 1], "event_type": ["view"] * 3, "time": [i, i, 0],
        "event_id": [f"a{i}", f"b{i}", f"c{i // 2}"], "price": price,
    })
    log.append(table, now=10**15)
    print(i, flush=True)
log.flush()
"""


def kills(folder: Path, count: int, seed: int, pushes: int = 120) -> dict[str, Any]:
    """Kill ``count`` children at random moments; how often something was lost, doubled, or differed after the rerun."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"kills": 0, "lost": 0, "doubled": 0, "differ": 0, "acknowledged": 0, "seed": seed}
    want = _contents(_run(folder / "clean", pushes, None)[0])
    rounds = 0
    while found["kills"] < count:
        rounds += 1
        root = folder / f"round-{rounds}"
        log, said = _run(root, pushes, float(rng.uniform(0.0, 0.004 * pushes)))
        if said is None:
            continue  # it had ended before
        found["kills"] += 1
        found["acknowledged"] += len(said)
        events = log.table(columns=["event_id", "seq"])
        ids = events["event_id"].to_pylist()
        wanted = {f"{letter}{i}" for i in said for letter in ("b" if i % 7 == 3 else "ab")}
        found["lost"] += len(wanted - set(ids))
        found["doubled"] += len(ids) - len(set(ids))
        if events["seq"].to_pylist() != list(range(len(ids))):
            found["differ"] += 1
        again, _ = _run(root, pushes, None)
        if _contents(again) != want:
            found["differ"] += 1
    return found


def _run(root: Path, pushes: int, killed_after: float | None) -> tuple[EventLog, list[int] | None]:
    """The log after a run, killed so many seconds after its start or not at all; and the pushes it acknowledged, None if it ended."""
    if not (root / "log").exists():
        EventLog.create(root, LogSchema())
    command = [sys.executable, "-c", CHILD, str(root), "0", str(pushes)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    if killed_after is not None:
        time.sleep(killed_after)
        child.send_signal(signal.SIGKILL)
    out, _ = child.communicate()
    lines = out.splitlines() if out.endswith("\n") else out.splitlines()[:-1]
    if killed_after is None and child.returncode != 0:
        raise RuntimeError(f"a run that nobody killed ended with {child.returncode}")
    return EventLog.open(root), [int(line) for line in lines] if child.returncode else None


def _contents(log: EventLog) -> Any:
    log.flush()
    names = log.dictionaries.names()
    codes = {name: sorted(log.dictionaries.get(name, log.schema.id_type(name)).ids) for name in names}
    rows = log.table(columns=["event_id", "user_id", "item_id", "time", "price"]).sort_by("event_id").to_pylist()
    return rows, codes, log.quarantine.counts(), log.count()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        found = kills(Path(folder), count, seed=0)
    found["command"] = f"python tests/benchmarks/faults_log.py {count}"
    found["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    print(json.dumps(found, indent=2))
    (ROOT / "docs/benchmarks/faults_log.json").write_text(json.dumps(found, indent=2) + "\n")
    if found["lost"] or found["doubled"] or found["differ"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
