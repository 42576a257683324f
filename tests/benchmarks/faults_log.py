"""Kill processes that take events at random moments: ``python tests/benchmarks/faults_log.py [KILLS]`` (default 200 of each kind).

After each kill, all that was said to be taken must be in the log once, and files whole or not at all; after a rerun, the log must hold what
one clean run gives. Prints the counts and keeps those of 200 and more in ``docs/benchmarks/faults_log.json``.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from figures import FOLDER, machine

from zoo.events.ingest import ingest
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema

NOW = 10**15
FILES = 4
# Children fork from a server that has imported this, and are at work within milliseconds; the parent has threads and does not fork.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pyarrow.parquet", "zoo.events.ingest", "zoo.events.log"])

Work = Callable[[Path, int], None]


def _say(root: Path, number: int) -> None:
    """Acknowledge a push or a file: what is written here was promised to be kept."""
    with (root / "said").open("a") as said:
        said.write(f"{number}\n")


def push(root: Path, number: int) -> None:
    """Push ``number`` times, good rows, bad rows and repeats in each, while a thread moves the tail into Delta after every tenth.

    A thread, as a process beside this one (``zoo.events.beside``) would not be killed with it.
    """
    log = EventLog.open(root)
    with ThreadPoolExecutor(1) as beside:
        for i in range(number):
            log.append(_good_and_bad(i), now=NOW)
            _say(root, i)
            if i % 10 == 9:
                beside.submit(log.flush)
    log.flush()


def _good_and_bad(i: int) -> pa.Table:
    table = {
        "user_id": [i, i % 5, 0],
        "item_id": [i % 11, i, 1],
        "event_type": ["view"] * 3,
        "time": [i, i, 0],
        "event_id": [f"a{i}", f"b{i}", f"c{i // 2}"],
        "price": [float("inf") if i % 7 == 3 else 1.0, 2.0, 3.0],
    }
    return pa.table(table)


def take(root: Path, rows: int) -> None:
    """Take files of so many rows each, over a tail that pushes left; the files share events with each other and with the pushes."""
    log = EventLog.open(root)
    for i in range(3):
        log.append(_events(np.arange(i * 10, i * 10 + 20)), now=NOW)
    for i in range(FILES):
        ingest(log, root.parent / f"{rows}-{i}.parquet", now=NOW)
        _say(root, i)


def _events(numbers: Any) -> pa.Table:
    """Events of these numbers; every 7th is bad."""
    price = np.where(numbers % 7 == 3, np.inf, numbers / 4)
    at = pa.array(numbers, pa.timestamp("us", "UTC"))
    columns = {"user_id": numbers % 997, "item_id": numbers % 499, "timestamp": at, "price": price}
    return pa.table({**columns, "event_type": ["view"] * len(numbers), "event_id": [f"f{n}" for n in numbers]})


def _files(folder: Path, rows: int) -> None:
    for i in range(FILES):
        numbers = np.random.default_rng(i).permutation(np.arange(rows)) + i * rows // 2
        pq.write_table(_events(numbers), folder / f"{rows}-{i}.parquet", row_group_size=max(rows // 4, 1))


def promised_pushes(said: list[int], number: int) -> tuple[set[str], list[set[str]]]:
    """(event ids that must be there after these acknowledgements, sets of which all or none must be)."""
    return {f"{letter}{i}" for i in said for letter in ("b" if i % 7 == 3 else "ab")}, []


def promised_files(said: list[int], rows: int) -> tuple[set[str], list[set[str]]]:
    """As ``promised_pushes``."""
    whole = [{f"f{n}" for n in range(i * rows // 2, i * rows // 2 + rows) if n % 7 != 3} for i in range(FILES)]
    # what only this file brings: it begins where the one before the last ended, and is half taken over by the next
    own = [whole[i] - set().union(*whole[:i], {f"f{n}" for n in range(40)}) for i in range(FILES)]
    return set().union(*(whole[i] for i in said)), own


KINDS: dict[str, tuple[Work, Callable[[list[int], int], tuple[set[str], list[set[str]]]], int]] = {
    "pushes": (push, promised_pushes, 60),
    "ingest": (take, promised_files, 10_000),
}


def kills(folder: Path, kind: str, count: int, seed: int, size: int | None = None) -> dict[str, Any]:
    """Kill ``count`` processes, each at a random moment of what a whole run takes; what was lost, doubled or torn, what a rerun gave.

    size: pushes, or rows of a file.
    """
    work, promised, usual = KINDS[kind]
    size = usual if size is None else size
    found: dict[str, Any] = {"kills": 0, "acknowledged": 0, "lost": 0, "doubled": 0, "torn": 0, "differ after a rerun": 0}
    if kind == "ingest":
        _files(folder, size)
    rng = np.random.default_rng(seed)
    _run(work, folder / "warm", size)  # the server of forks imports first
    began = time.monotonic()
    want = _contents(_run(work, folder / "clean", size)[0])
    length = time.monotonic() - began
    rounds = 0
    while found["kills"] < count:
        rounds += 1
        root = folder / f"{kind}-{rounds}"
        log, said = _run(work, root, size, float(rng.uniform(0.0, length)))
        if said is None:
            continue  # it had ended before
        ids = log.table(columns=["event_id", "seq"])
        here = ids["event_id"].to_pylist()
        must, whole = promised(said, size)
        found["kills"] += 1
        found["acknowledged"] += len(said)
        found["lost"] += len(must - set(here))
        found["doubled"] += len(here) - len(set(here))
        found["torn"] += sum(0 < len(part & set(here)) < len(part) for part in whole)
        found["torn"] += ids["seq"].to_pylist() != list(range(len(here)))
        again, _ = _run(work, root, size)
        found["differ after a rerun"] += _contents(again) != want
    return {**found, "seconds of a whole run": round(length, 2), "seed": seed}


def _run(work: Work, root: Path, size: int, killed_after: float | None = None) -> tuple[EventLog, list[int] | None]:
    """The log after a run, killed so many seconds after its start or not at all; and what it acknowledged, None if it ended."""
    if not (root / "log").exists():
        EventLog.create(root, LogSchema())
    child = _PROCESSES.Process(target=work, args=(root, size))
    child.start()
    child.join(killed_after)
    child.kill()
    child.join()
    if child.exitcode not in (0, -9) or (killed_after is None and child.exitcode):
        raise RuntimeError(f"a run that nobody killed ended with {child.exitcode}")
    said = (root / "said").read_text().splitlines() if (root / "said").exists() else []
    return EventLog.open(root), [int(line) for line in said] if child.exitcode else None


def _contents(log: EventLog) -> Any:
    """All that a log says, comparable."""
    log.flush()
    ids = {name: list(log.dictionaries.get(name, log.schema.id_type(name)).ids) for name in log.dictionaries.names()}
    table = log.table(columns=["seq", "event_id", "user_id", "item_id", "time", "price"])
    bad = (
        log.quarantine.table()
        .select(["source", "row", "reason", "record"])
        .sort_by([("source", "ascending"), ("row", "ascending")])
    )
    return table.combine_chunks().to_pydict(), ids, bad.to_pydict(), log.count()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    found: dict[str, Any] = {
        "command": f"python tests/benchmarks/faults_log.py {count}",
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    good = True
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = kills(Path(folder), kind, count, seed=0)
        print(json.dumps({kind: found[kind]}, indent=1), flush=True)
        good &= not any(found[kind][name] for name in ("lost", "doubled", "torn", "differ after a rerun"))
    if count >= 200:
        (FOLDER / "faults_log.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    from faults_log import main as run  # under its own name, by which the children know it

    run()
