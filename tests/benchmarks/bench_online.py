"""Online reads and pushes on Redis: ours, raw redis-py on the same bytes, and Feast's own Redis store on the same features.

Every latency is p50 over random households of the demo's log (``zoo demo`` ingests it); the clock is its end.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' servers

from figures import QUICK, Figure, chosen
from services import redis_program, redis_server

LOG = Path(__file__).parents[2] / "feature_repo" / "data" / "log"
DEFINITIONS = """
from feast import Entity, FeatureService, FeatureView, ValueType

from zoo.events.specs import Aggregation, count, last_n, mean, total
from zoo.stores import EventSource
from zoo.stores.source import schema_of

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
WINDOWS, BOUGHT = ("7d", "28d", "56d", "112d"), ("purchase",)
recent = Aggregation(("user_id",), (
    last_n("items", "item_id", 50, where=BOUGHT), last_n("values", "value", 50, where=BOUGHT),
    *(count(f"n_{w}", w, where=BOUGHT) for w in WINDOWS),
    *(total(f"spend_{w}", "value", w, where=BOUGHT) for w in WINDOWS),
    *(mean(f"mean_{w}", "value", w, where=BOUGHT) for w in WINDOWS),
))
view = FeatureView(name="recent", entities=[user], source=EventSource(name="recent", aggregation=recent), schema=schema_of(recent))
bench = FeatureService(name="bench", features=[view])
"""
SETTINGS = """project: {project}
provider: local
registry: {project}.db
entity_key_serialization_version: 3
offline_store:
  type: zoo.stores.EventLogOfflineStore
  log: log
  clock: log_end
online_store:
  type: {store}
"""
OURS = "zoo.stores.RedisEventOnlineStore"


def repository(root: Path, where: str, project: str, store: str, db: int, more: str = "") -> Path:
    """A repository over the copied log, its definitions applied. where: the Redis server; empty for a file of SQLite's."""
    from zoo.features import apply

    root.mkdir(exist_ok=True)
    if not (root / "log").exists():
        shutil.copytree(LOG, root / "log")
    place = f'  connection_string: "{where},db={db}"\n' if where else "  path: online.db\n"
    (root / "definitions.py").write_text(DEFINITIONS)
    (root / "feature_store.yaml").write_text(SETTINGS.format(project=project, store=store) + place + more)
    apply(root)
    return root


def timed(ask: Callable[[Any], Any], rows: list[Any]) -> np.ndarray[Any, Any]:
    """Milliseconds of each call, after a few that do not count."""
    for row in rows[:20]:
        ask(row)
    out = []
    for row in rows:
        began = time.perf_counter()
        ask(row)
        out.append(time.perf_counter() - began)
    return np.array(out) * 1e3


def reads(url: str, root: Path, seed: int = 0) -> list[Figure]:
    """F7 and F8."""
    import redis
    from feast import FeatureStore

    from zoo.features import Features

    where = url.removeprefix("redis://").partition("/")[0]
    ours = Features.open(repository(root / "ours", where, "ours", OURS, 0))
    ours.materialize()
    peer = FeatureStore(repo_path=str(repository(root / "peer", where, "peer", "redis", 1)))
    end = datetime.fromtimestamp((ours.reader.log.end() or 0) / 1e6 + 1, UTC)
    peer.materialize(datetime(2000, 1, 1, tzinfo=UTC), end)
    raw = redis.Redis.from_url(url)
    keys = [key for key in raw.scan_iter("ours:*", count=1000) if b":user_id:" in key]
    view, rng = ours.reader.view(), np.random.default_rng(seed)
    users = np.asarray(view.ids("user_id", np.arange(2, view.size("user_id"))))
    number = 1_000 if QUICK else 10_000
    one = rng.choice(users, number).tolist()
    hundred = [rng.choice(users, 100, replace=False).tolist() for _ in range(number // 10)]
    service = peer.get_feature_service("bench")

    def feast(ids: list[int]) -> Any:
        return peer.get_online_features(features=service, entity_rows=[{"user_id": user} for user in ids])

    def through_feast(store: Any) -> Callable[[list[int]], Any]:
        own = store.get_feature_service("bench")
        return lambda ids: store.get_online_features(features=own, entity_rows=[{"user_id": user} for user in ids])

    single = timed(lambda user: ours.online("bench", {"user_id": [user]}), one)
    got = timed(raw.get, [keys[n] for n in rng.integers(len(keys), size=number)])
    many = timed(lambda ids: ours.online("bench", {"user_id": ids}), hundred)
    mgot = timed(raw.mget, [[keys[n] for n in rng.choice(len(keys), 100, replace=False)] for _ in hundred])
    theirs = timed(feast, hundred[: max(len(hundred) // 5, 50)])
    figures = [
        bound("F7", "online read, 1 user, p50", np.median(single), "ms", np.median(got), "redis-py GET", 3),
        bound("F7", "online read, 1 user, p99", np.quantile(single, 0.99), "ms", np.quantile(got, 0.99), "redis-py GET", 3),
        bound("F8", "online read, 100 users, p50", np.median(many), "ms", np.median(theirs), "Feast's Redis store", 4, True),
        bound("F8", "online read, 100 users, p50", np.median(many), "ms", np.median(mgot), "redis-py MGET", 3),
    ]
    for text, rows in (("1 user", [[user] for user in one[: number // 10]]), ("100 users", hundred[: number // 50])):
        mine, feasts = timed(through_feast(ours.store), rows), timed(feast, rows)
        what = f"get_online_features, {text}, p50"
        figures.append(bound("", what, np.median(mine), "ms", np.median(feasts), "Feast's Redis store", 1, True))
    return figures


def bound(id: str, what: str, ours: Any, unit: str, peer: Any, name: str, times: float, faster: bool = False) -> Figure:
    """A figure whose bound is ``times`` faster than the peer, or within ``times`` of it."""
    ours, peer = float(ours), float(peer)
    reached = peer / ours >= times if faster else ours / peer <= times
    must = f"{times:g} times faster" if faster else f"within {times:g} times"
    why = "" if reached else f"{ours / peer:.2g} times the peer's"
    return Figure(
        id=id, what=what, ours=ours, unit=unit, peer=peer, peer_name=name, must=must, reached=reached, why=why, within=not faster
    )


def over_the_cap(url: str, root: Path) -> list[Figure]:
    """How far features are off for entities with more events than a small cap."""
    from zoo.features import Features

    where, cap = url.removeprefix("redis://").partition("/")[0], 200
    capped = Features.open(repository(root / "ours", where, "capped", OURS, 2, f"  max_events: {cap}\n"))
    capped.materialize()
    view, now = capped.reader.view(), capped.reader.now()
    users = view.ids("user_id", np.arange(2, view.size("user_id")))
    online, log = (
        capped.online("bench", {"user_id": users}),
        capped.history("bench", {"user_id": users, "time": [now] * len(users)}),
    )
    off = {n: online.column(n).values / np.maximum(log.column(n).values, 1e-9) for n in log.names if n.startswith("n_")}
    longest = off["n_112d"][log.column("n_112d").values > 0]
    return [
        Figure(what=f"share of users with over {cap} events in 112 days", ours=float((longest < 1).mean()), unit="share"),
        Figure(what=f"events counted in 112 days of those in the log, cap {cap}, mean", ours=float(longest.mean()), unit="share"),
    ]


def events(rng: np.random.Generator, users: Any, first: int, number: int, at: int) -> dict[str, Any]:
    """New purchases of known users, ids from ``first`` on."""
    return {
        "event_id": [f"bench-{first + n}" for n in range(number)],
        "user_id": rng.choice(users, number),
        "item_id": rng.integers(1, 1000, number),
        "event_type": ["purchase"] * number,
        "time": at + np.arange(number),
        "value": rng.integers(100, 1000, number) / 100,
    }


def synced(folder: Path, number: int) -> np.ndarray[Any, Any]:
    """Milliseconds until the disk holds 4 KB more of a file, a hundred times a second.

    A push waits for as much, or less: SQLite's log is written over where it has room, so that the file system's journal has nothing to do.
    """
    out = []
    with (folder / "synced").open("ab", buffering=0) as file:
        for _ in range(number):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            out.append(time.perf_counter() - began)
            time.sleep(max(0.01 - out[-1], 0))
    return np.array(out) * 1e3


def pushes(url: str, root: Path, seed: int = 0) -> list[Figure]:
    """F9: ten events a push at 100 pushes a second; then batches of 20,000 a second, all of them found in the log and online."""
    from zoo.features import Features

    where = url.removeprefix("redis://").partition("/")[0]
    features = Features.open(repository(root / "pushed", where, "pushed", OURS, 3))
    features.materialize()
    view, rng = features.reader.view(), np.random.default_rng(seed)
    users = np.asarray(view.ids("user_id", np.arange(2, view.size("user_id"))))
    disk = synced(root, 200 if QUICK else 1_000)
    at = (features.reader.log.end() or 0) + 1
    seconds, waits, lock = (10 if QUICK else 60), [], threading.Lock()
    batches = [events(rng, users, 10 * n, 10, at + 10 * n) for n in range(100 * seconds)]

    def push(worker: int) -> None:
        for n in range(worker, len(batches), 4):
            due = start + n / 100  # by the schedule, so that a slow push delays those behind it
            time.sleep(max(due - time.perf_counter(), 0))
            features.append(batches[n])
            with lock:
                waits.append(time.perf_counter() - due)

    for n in range(20):  # these do not count
        features.append(events(rng, users, -10 * n - 10, 10, at))
    before = features.reader.log.count()
    # as `zoo serve` does: a push waits neither for a full collection of garbage nor long for another thread's turn to end
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    start = time.perf_counter() + 0.5
    threads = [threading.Thread(target=push, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p99 = float(np.quantile(waits, 0.99)) * 1e3
    sent, rounds = 1_000 * seconds, 5 if QUICK else 300
    began = time.perf_counter()
    for n in range(rounds):
        features.append(events(rng, users, sent, 20_000, at + sent))
        sent += 20_000
        time.sleep(max(began + n + 1 - time.perf_counter(), 0))
    rate = 20_000 * rounds / (time.perf_counter() - began)
    lost = before + sent - features.reader.log.count()
    some = {"user_id": users[:200]}
    log = features.history("bench", {**some, "time": np.full(200, features.reader.now())})
    lost += int((features.online("bench", some).column("n_7d").values != log.column("n_7d").values).sum())
    features.close()
    kept_up, quick = rate >= 19_900 and not lost, p99 <= 5
    return [
        Figure(
            id="F9",
            what="push of 10 events to visible, 1,000 events a second, p99",
            ours=p99,
            unit="ms",
            must="5 ms",
            reached=quick,
            why="" if quick else f"{p99:.1f} ms",
        ),
        Figure(what="push of 10 events to visible, 1,000 events a second, p50", ours=float(np.median(waits)) * 1e3, unit="ms"),
        Figure(what="fsync of 4 KB appended to a file of the same disk, p50", ours=float(np.median(disk)), unit="ms"),
        Figure(what="fsync of 4 KB appended to a file of the same disk, p99", ours=float(np.quantile(disk, 0.99)), unit="ms"),
        Figure(
            id="F9",
            what=f"events a second in batches of 20,000 for {rounds} s; {lost} lost",
            ours=rate,
            unit="events/s",
            lower_is_better=False,
            must="20,000, none lost",
            reached=kept_up,
            why="" if kept_up else f"{rate:,.0f} events a second, {lost} lost",
        ),
    ]


def main() -> None:
    if not LOG.exists():
        sys.exit(f"no log at {LOG}; make one with: zoo demo")
    with tempfile.TemporaryDirectory() as folder, redis_server(redis_program()) as url:
        root = Path(folder)
        parts = {"reads": reads, "cap": over_the_cap, "pushes": pushes}
        chosen("online", {name: partial(part, url, root) for name, part in parts.items()}, __doc__)


if __name__ == "__main__":
    main()
