"""Features against what one machine runs otherwise: ``make bench-features``, rows F1 to F6 of the issue.

Every measurement is a process of its own; ours answers through ``store.get_historical_features(...).to_arrow()``. Logs, indexes and what
was measured already are kept in ``.peers/logs``, so that a run that was cut short goes on; FRESH=1 measures anew. Peers run in
environments of their own (``.peers/feast``, ``.peers/queries``), made once. What each prepares beforehand (our index, the peers' sorted
tables, running sums and snapshots) is not in the seconds; F4 and F5 say what ours costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import features_cases as cases
from features_queries import WAYS
from features_snapshots import snapshot_bytes, write_snapshots
from figures import QUICK, Figure, chosen
from measured import child

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PEERS = ROOT / ".peers"
RUNS = 5
SHORT_RUNS = 15
"""Runs of what takes half a second or less, the first few of which find memory that was not used before."""
ROWS = 100_000
LARGE = (1_000_000, 100_000) if QUICK else (10_000_000, 1_000_000)
"""Events and rows of F3."""
SIZES = (100_000, 1_000_000) if QUICK else (1_000_000, 10_000_000, 100_000_000)
SIZE_ROWS = 20_000 if QUICK else 200_000
"""Rows of F5 beside those of F3."""
COPIED = 100_000 if QUICK else 1_600_000
"""Events of the log whose users F6 materializes, a fiftieth as many."""
TOLERANCE = 1e-9


def python(name: str, *packages: str) -> Path:
    """The interpreter of a peers' environment, made the first time."""
    folder = PEERS / name
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        pins = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *pins, *packages], check=True)
        (folder / "complete").touch()
    return folder / "bin/python"


def feast() -> Path:
    return python("feast", "feast[duckdb,redis]==0.67.0")


def queries() -> Path:
    return python("queries", "polars", "duckdb==2.0.0", "pyarrow", "numpy", "pandas")


class Kept:
    """What was measured already by this very code."""

    def __init__(self) -> None:
        code = hashlib.sha256()
        for path in sorted([*ROOT.glob("zoo/**/*.py"), *HERE.glob("*.py")]):
            code.update(path.read_bytes())
        self.path = cases.CASES / f"measured-{code.hexdigest()[:12]}{'-quick' if QUICK else ''}.json"
        fresh = os.environ.get("FRESH", "0") not in ("", "0")
        self.found: dict[str, Any] = {} if fresh or not self.path.exists() else json.loads(self.path.read_text())

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.found:
            print(f"{name} ...", file=sys.stderr, flush=True)
            self.found[name] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1))
        return self.found[name]


def ours(case: Path, what: str, *rest: Any) -> dict[str, Any]:
    return child([sys.executable, HERE / "features_ours.py", case, what, *rest])


def span(found: dict[str, Any]) -> tuple[float, float]:
    return min(found["seconds"]), max(found["seconds"])


def bound(must: str, reached: bool, why: str) -> dict[str, Any]:
    return {"must": must, "reached": reached, "why": "" if reached else why}


def same_lists(case: Path, other: str, rename: bool = False) -> int:
    """How many rows of a peer's answers are ours; no list is as good as an empty one. rename: its rows come in an order of its own."""
    import polars as pl

    def lists(path: Path) -> Any:
        frame = pl.read_parquet(path).select("user_id", pl.nth(1).alias("t"), "items", "values")
        at = pl.col("t").dt.epoch("us") if frame.schema["t"].is_temporal() else pl.col("t").cast(pl.Int64)
        return frame.select("user_id", at, pl.col("items", "values").fill_null([]))

    mine, theirs = lists(case / "ours-lists.parquet"), lists(case / f"{other}.parquet")
    if rename:
        both = theirs.join(mine.unique(["user_id", "t"]), on=["user_id", "t"], suffix="_ours")
    else:
        both = pl.concat([theirs, mine.select(pl.all().name.suffix("_ours"))], how="horizontal")
    same = (pl.col("items") == pl.col("items_ours")) & (pl.col("values") == pl.col("values_ours"))
    return int(both.select(same.fill_null(False).sum()).item())


def different_windows(case: Path, other: str) -> int:
    """How many values of a peer's twelve windows are not ours, to one part in a billion."""
    import numpy as np
    import pyarrow.parquet as pq

    mine, theirs, bad = pq.read_table(case / "ours-windows.parquet"), pq.read_table(case / f"{other}.parquet"), 0
    for name in theirs.column_names[2:]:
        a, b = (np.asarray(table[name].cast("float64").fill_null(np.nan)) for table in (mine, theirs))
        bad += int((~np.isclose(a, b, rtol=TOLERANCE, atol=0, equal_nan=True)).sum())
    return bad


def free_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def f1(kept: Kept) -> list[Figure]:
    case = cases.demo()
    rows = kept("F1 rows", lambda: 1_000 if QUICK else ROWS if free_gib() > 21 else 10_000)
    mine = kept("F1 ours", lambda: ours(case, "lists", rows, RUNS))
    write_snapshots(case)

    def peer(kind: str) -> dict[str, Any]:
        found = child([feast(), HERE / "feast_duckdb_peer.py", case, rows, kind])
        return found | {"same": same_lists(case, f"{kind}-answers", rename=True)}

    event, instant = (kept(f"F1 {kind}", lambda kind=kind: peer(kind)) for kind in ("event", "instant"))
    faster, seconds = event["seconds"] / statistics.median(mine["seconds"]), statistics.median(mine["seconds"])
    smaller = event["peak_mb"] / mine["peak_mb"]
    shared = {"id": "F1", "seeds": (cases.SEED,), "peer_name": "Feast DuckDB store over per-event snapshots"}
    fewer = "" if rows == ROWS else f"; {rows:,} rows only, as 100,000 take the peer 20 GB"
    return [
        Figure(
            **shared,
            what=f"history of {rows:,} rows, two lists of 50, demo data ({event['same']:,} of the peer's answers are ours){fewer}",
            ours=seconds,
            peer=event["seconds"],
            unit="s",
            interval=span(mine),
            **bound("at least 300 times faster", faster >= 300, f"{faster:.0f} times{fewer}"),
        ),
        Figure(
            **shared,
            what=f"the same, peak memory of the whole process{fewer}",
            ours=mine["peak_mb"],
            peer=event["peak_mb"],
            unit="MB",
            within=True,
            **bound("at most a tenth", smaller >= 10, f"a {smaller:.1f}th{fewer}"),
        ),
        Figure(
            **{**shared, "peer_name": "Feast DuckDB store over per-instant snapshots"},
            what=f"the same, the peer over the last snapshot of each instant only ({instant['same']:,} of its answers are ours)",
            ours=seconds,
            peer=instant["seconds"],
            unit="s",
            interval=span(mine),
        ),
        Figure(
            **shared,
            what="the same, rows answered",
            ours=mine["rows"],
            peer=event["returned"],
            unit="rows",
            lower_is_better=False,
        ),
    ]


def against_queries(
    kept: Kept, id_: str, case: Path, what: str, rows: int, text: str, same: Callable[[str], str], times: float
) -> tuple[dict[str, Any], list[Figure]]:
    """Ours and each hand-written query, a figure each; the bound stands at the quickest.

    Half of our runs are before the peer's, half after: the speed of a machine drifts.
    """
    found, figures = {}, []
    for way in WAYS[what]:

        def turn(way: str = way) -> dict[str, Any]:
            half = SHORT_RUNS // 2 + 1
            before = ours(case, what, rows, half)
            said = child([queries(), HERE / "features_queries.py", case, way, rows, SHORT_RUNS]) | {"same": same(way)}
            mine = ours(case, what, rows, half)
            return {"ours": mine | {"seconds": [*before["seconds"], *mine["seconds"]]}, "peer": said}

        found[way] = kept(f"{id_} {way}", turn)
    quickest = min(found, key=lambda way: statistics.median(found[way]["peer"]["seconds"]))
    for way, each in found.items():
        mine, said = each["ours"], each["peer"]
        seconds, took = statistics.median(mine["seconds"]), statistics.median(said["seconds"])
        ratio = took / seconds
        figures.append(
            Figure(
                id=id_,
                what=f"{text}, medians of {len(mine['seconds'])} and {len(said['seconds'])} runs ({said['same']})",
                ours=seconds,
                peer=took,
                peer_name=f"{way}, hand-written",
                unit="s",
                interval=span(mine),
                seeds=(cases.SEED,),
                **(bound(f"at least {times:g} times faster", ratio >= times, f"{ratio:.1f} times") if way == quickest else {}),
            )
        )
    return found[quickest]["ours"], figures


def f2(kept: Kept) -> list[Figure]:
    case = cases.demo()
    same = lambda way: f"{same_lists(case, way):,} of its rows are ours"  # noqa: E731 - one argument of one call
    text = f"history of {ROWS:,} rows, two lists of 50, demo data"
    return against_queries(kept, "F2", case, "lists", ROWS, text, same, 3)[1]


def f3(kept: Kept) -> list[Figure]:
    events, rows = LARGE
    case = cases.generated(events, rows)
    same = lambda way: f"{different_windows(case, way):,} of its values differ from ours"  # noqa: E731 - as above
    text = f"history of {rows:,} rows, 12 aggregations, generated log of {events:,} events"
    mine, figures = against_queries(kept, "F3", case, "windows", rows, text, same, 3)
    times = mine["grown_mb"] / mine["output_mb"]
    figures.append(
        Figure(
            id="F3",
            what="the same, anonymous memory that a run takes beside what was there (the first run also makes what is derived from the "
            f"index and kept: {mine['first_mb']:.0f} MB in all)",
            ours=mine["grown_mb"],
            peer=mine["output_mb"],
            peer_name="the output's bytes",
            unit="MB",
            seeds=(cases.SEED,),
            within=True,
            **bound("at most twice the output", times <= 2, f"{times:.1f} times"),
        )
    )
    return figures


def index_bytes(root: Path) -> dict[str, int]:
    """Bytes of the index by entity kind."""
    from zoo.events.tables import ENTITIES
    from zoo.events.view import LogView

    view = LogView.open(root)
    for entity in ENTITIES:
        view.partitions(entity)
    out = dict.fromkeys(ENTITIES, 0)
    for path in (root / "index").rglob("*"):
        for entity in out:
            if path.is_file() and entity == path.relative_to(root).parts[1]:
                out[entity] += path.stat().st_size
    return out


def log_bytes(root: Path) -> int:
    """Uncompressed Arrow bytes of the log's columns, text as dictionaries of the log hold it."""
    from zoo.events.log import EventLog

    log = EventLog.open(root)
    return sum(table.nbytes for table in log.chunks(None))


def f4(kept: Kept) -> list[Figure]:
    figures = []
    for name, case in (("demo", cases.demo()), (f"generated, {LARGE[0]:,} events", cases.generated(*LARGE))):
        root = case / "repo" / "log"
        whole = kept(f"F4 {name} log", lambda root=root: log_bytes(root))
        snapshots = kept(f"F4 {name} snapshots", lambda case=case: snapshot_bytes(case))
        for entity, size in kept(f"F4 {name} index", lambda root=root: index_bytes(root)).items():
            times = size / whole
            figures.append(
                Figure(
                    id="F4",
                    what=f"index of {entity}, {name}; a table of per-event snapshots of two lists of 50 has {snapshots / 1e6:,.0f} MB",
                    ours=size / 1e6,
                    peer=whole / 1e6,
                    peer_name="the log's columns as Arrow",
                    unit="MB",
                    within=True,
                    **bound("at most 1.5 times", times <= 1.5, f"{times:.2f} times"),
                )
            )
    return figures


def f5(kept: Kept) -> list[Figure]:
    figures, rates = [], {}
    for events in SIZES:
        case = cases.generated(events, LARGE[1])
        for rows in (SIZE_ROWS, LARGE[1]):
            found = kept(f"F5 {events} {rows}", lambda case=case, rows=rows: ours(case, "windows", rows, SHORT_RUNS))
            rates[events, rows] = rows / statistics.median(found["seconds"])
            falls = rates[SIZES[0], rows] / rates[events, rows]
            figures.append(
                Figure(
                    id="F5",
                    what=f"history of {rows:,} rows, 12 aggregations, log of {events:,} events",
                    ours=rates[events, rows],
                    unit="rows/s",
                    lower_is_better=False,
                    interval=tuple(sorted(rows / s for s in span(found))),  # type: ignore[arg-type]
                    seeds=(cases.SEED,),
                    **(bound("falls by less than 2 times", falls < 2, f"{falls:.1f} times") if events == SIZES[-1] else {}),
                )
            )
        made = json.loads((case / "ingest.json").read_text())
        figures += [
            Figure(id="F5", what=f"ingest of {events:,} events", ours=made["ingest"], unit="s"),
            Figure(id="F5", what=f"index of {events:,} events, both entity kinds", ours=made["index"], unit="s"),
            Figure(
                id="F5",
                what=f"peak memory of ingest and index, {events:,} events",
                ours=made["peak_mb"],
                unit="MB",
                **(bound("at most 6000", made["peak_mb"] <= 6000, f"{made['peak_mb']:.0f} MB") if events == SIZES[-1] else {}),
            ),
        ]
    return figures


def same_users(case: Path, store: str) -> int:
    """How many of the compared users have the same answers in both stores; counts of nothing and empty lists are as good as missing."""
    import numpy as np
    import pyarrow.parquet as pq

    mine, theirs = (pq.read_table(case / f"{who}-{store}.parquet").sort_by("user_id") for who in ("ours", "peer"))
    same = np.array(mine["user_id"]) == np.array(theirs["user_id"])
    for name in theirs.column_names:
        a, b = mine[name].to_pylist(), theirs[name].to_pylist()
        if isinstance(a[0], list):
            same &= [(x or []) == (y or []) for x, y in zip(a, b)]
        else:
            same &= np.isclose(np.array(a, float), np.array(b, float), rtol=TOLERANCE, equal_nan=True)
    return int(same.sum())


def f6(kept: Kept) -> list[Figure]:
    sys.path.insert(0, str(HERE.parent))
    from features_ours import COMPARED
    from services import redis_service

    case, figures = cases.generated(COPIED, SIZE_ROWS), []
    users = kept("F6 users", lambda: ours(case, "newest")["users"])
    for store in ("sqlite", "redis"):

        def both(store: str = store) -> dict[str, Any]:
            runs = []
            for _ in range(RUNS):
                with redis_service() as one, redis_service() as other:
                    places = [url.split("//")[1].split("/")[0] for url in (one, other)]
                    mine = ours(case, store, places[0])
                    peer = child([feast(), HERE / "feast_materialize_peer.py", case, store, places[1], COMPARED])
                runs.append((mine["seconds"], peer["seconds"]))
            mine_seconds, peer_seconds = zip(*runs)
            same = same_users(case, store)
            return {"ours": {"seconds": mine_seconds}, "peer": peer_seconds, "copied": mine["copied"]["user_id"], "same": same}

        found = kept(f"F6 {store}", both)
        seconds, peer = statistics.median(found["ours"]["seconds"]), statistics.median(found["peer"])
        figures.append(
            Figure(
                id="F6",
                what=f"materialize {found['copied']:,} users of a generated log of {COPIED:,} events, two lists of 50 and 12 windows, "
                f"median of {RUNS} runs (the peer copies {users:,} rows that hold their values at the log's end; the answers of "
                f"{found['same']:,} of the first {COMPARED:,} users are the same)",
                ours=seconds,
                peer=peer,
                peer_name=f"Feast {store} store",
                unit="s",
                interval=span(found["ours"]),
                seeds=(cases.SEED,),
                **bound("at least 20 times faster", peer / seconds >= 20, f"{peer / seconds:.1f} times"),
            )
        )
    return figures


def main() -> int:
    kept = Kept()
    chosen("features", {part.__name__.upper(): partial(part, kept) for part in (f1, f2, f3, f4, f5, f6)}, __doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
