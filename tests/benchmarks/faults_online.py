"""The long proofs of the online store, counted: killed copies, cancelled reads, many writers, a failing Redis. Ends with 1 where one fails.

``python tests/benchmarks/faults_online.py [PART ...]``, a part being copies, reads, writers or faults with -redis or -sqlite: all by
default; QUICK=1 for small numbers. Counts are kept in docs/benchmarks/faults_online.json.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_online import LOG, OURS, repository
from figures import FOLDER, QUICK, machine
from services import redis_program, redis_server

BAD = ("wrong", "failed", "features that differ", "other errors", "late", "not right again", "answers that went back in time")
LATER = 1_600_000_000_000_000
"""An instant after every event, microseconds."""
SQLITE = "zoo.stores.SqliteEventOnlineStore"


def child(work: Callable[[], Any]) -> int:
    """Process id of a fork that does the work. The parent only imports: nothing that has threads is open when it forks."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = int(work() or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def done(work: Callable[[], Any]) -> bool:
    """Whether the work, in a process of its own, ended well."""
    return os.waitstatus_to_exitcode(os.waitpid(child(work), 0)[1]) == 0


def digest(root: Path, into: Path) -> None:
    """sha256 of every entity's kept events, decoded, and of the watermark."""
    from zoo.features import Features
    from zoo.stores.frames import index_of

    features = Features.open(root)
    store, config, view = features._online_store, features.store.config, features.reader.view()
    space, found = store.space(config, view), hashlib.sha256()
    found.update(str(store.load(config, space, {})[1]).encode())
    for code, value in sorted(store.values(config, space, "user_id")):
        index, _ = index_of([value])
        columns = {"time": index.time, "seq": index.seq, **index.columns}
        found.update(repr([code, sorted((name, values.tobytes()) for name, values in columns.items())]).encode())
    into.write_text(found.hexdigest())


def copy(root: Path) -> None:
    from zoo.features import Features

    Features.open(root).materialize()


def killed_copies(root: Path, empty: Callable[[], Any], times: int) -> dict[str, int]:
    """Copies killed at random moments into an empty store and run again, and how many then held what one clean copy does."""
    out, rng = root / "digest", random.Random(0)
    empty()
    done(lambda: copy(root))  # the index is there from here on
    empty()
    began = time.monotonic()
    good = done(lambda: copy(root))
    length = time.monotonic() - began
    if not (good and done(lambda: digest(root, out))):
        raise RuntimeError("a copy that nobody killed failed")
    clean, same, killed, ended = out.read_text(), 0, 0, 0
    while killed < times:
        empty()
        pid = child(lambda: copy(root))
        time.sleep(rng.random() * length)
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            ended += 1  # before it was killed
            continue
        killed += 1
        out.unlink(missing_ok=True)
        same += done(lambda: copy(root)) and done(lambda: digest(root, out)) and out.read_text() == clean
    return {"copies killed": killed, "ended before": ended, "equal to a clean copy after a rerun": same}


def cancelled_reads(root: Path, number: int, at_once: int = 256) -> dict[str, int]:
    """Reads of unique keys (a user and an instant each), about half of them cancelled at whatever point they are."""
    from zoo.features import Features

    features = Features.open(root)
    copy(root)
    view, rng, now = features.reader.view(), np.random.default_rng(0), features.reader.now()
    users = np.asarray(view.ids("user_id", np.arange(2, view.size("user_id"))))
    counts = {"reads": number, "answered": 0, "cancelled": 0, "wrong": 0}
    expected = features.online("bench", {"user_id": users}, now)
    of = {int(user): row for row, user in enumerate(users)}
    items, values = expected.column("items"), expected.column("values")

    async def read(n: int) -> None:
        user = int(users[n % len(users)])
        try:
            batch = await features.online_async("bench", {"user_id": [user]}, now + n)
        except asyncio.CancelledError:
            counts["cancelled"] += 1
            return
        row = np.array([of[user]])
        right = batch.as_of.tolist() == [now + n] and batch.newest[0] == expected.newest[row[0]]
        for name, column in (("items", items), ("values", values)):
            right &= np.array_equal(batch.column(name).values, column.take(row).values, equal_nan=name == "values")
        counts["answered"] += 1
        counts["wrong"] += not right

    async def run() -> None:
        waiting: set[asyncio.Task[None]] = set()
        for n in range(number):
            task = asyncio.ensure_future(read(n))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            if rng.random() < 0.5:
                asyncio.get_running_loop().call_later(rng.random() * 0.02, task.cancel)
            while len(waiting) >= at_once:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*waiting, return_exceptions=True)
        await features.aclose()

    asyncio.run(run())
    counts["cancelled"] = number - counts["answered"]  # those cancelled before they began are among them
    return counts


def many_writers(root: Path, number: int, writers: int = 8) -> dict[str, int]:
    """Events pushed by 8 processes, each event by two of them, in shuffled order; users whose online features differ from the log's."""
    from zoo.consistency import drift
    from zoo.events.log import EventLog
    from zoo.features import Features

    def write(own: int) -> None:
        features = Features.open(root)
        mine = np.random.default_rng(own).permutation([n for n in range(number) if n % writers in (own, (own + 1) % writers)])
        for part in np.array_split(mine, max(len(mine) // 250, 1)):
            features.append(
                {
                    "event_id": [f"many-{n}" for n in part],
                    "user_id": part % 500 + 1,
                    "item_id": part % 997 + 1,
                    "event_type": ["purchase"] * len(part),
                    "time": 1_514_800_000_000_000 + part * 1_000_003 % 86_400_000_000,
                    "value": part % 100 / 4,
                }
            )

    def watch() -> None:
        """Read until the writers are done; an answer that knows less than one before it went back in time."""
        features, back, seen, reads = Features.open(root), 0, np.full(50, -1), 0
        while not (root / "written").exists():
            newest = features.online("bench", {"user_id": np.arange(1, 51)}, LATER).newest
            back, seen, reads = back + int((newest < seen).sum()), np.maximum(seen, newest), reads + 1
        (root / "watched.json").write_text(json.dumps({"reads meanwhile": reads, "answers that went back in time": back}))

    watcher = child(watch)
    pids = [child(lambda own=own: write(own)) for own in range(writers)]  # type: ignore[misc]
    ended = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in pids)
    (root / "written").touch()
    os.waitpid(watcher, 0)
    log = EventLog.open(root / "log")
    ids = log.table(columns=["event_id"])["event_id"].to_pylist()
    here = [x for x in ids if x and x.startswith("many-")]
    differ = drift(Features.open(root), "bench", 1_000)[1]
    return {
        "writers": writers,
        "ended well": ended,
        "events": number,
        "in the log once": len(here) if len(set(here)) == len(here) else -1,
        "features that differ": len(differ),
        **(json.loads((root / "watched.json").read_text()) if (root / "watched.json").exists() else {"failed": 1}),
    }


def redis_faults(root: Path, number: int) -> dict[str, int]:
    """Reads of three users from a Redis that refuses, breaks off in the middle of a reply, holds it back or lost everything, and each
    again once it is well. An answer counts as right where it is the log's; late is one that took more than twice the client's five seconds.
    """
    import redis
    from proxy import Proxy

    from zoo.errors import FeatureError
    from zoo.features import Features

    counts = dict.fromkeys(("reads", "right", "clear errors", "other errors", "wrong", "late", "not right again"), 0)
    with redis_server(redis_program()) as url:
        host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
        proxy = Proxy((host, int(port)))
        features = Features.open(repository(root / "faults", f"127.0.0.1:{proxy.port}", "faults", OURS, 0))
        features.materialize()
        users = np.asarray(features.reader.view().ids("user_id", np.arange(2, features.reader.view().size("user_id"))))
        expected = features.history("bench", {"user_id": users, "time": [features.reader.now()] * len(users)})
        rng = np.random.default_rng(0)

        def ask() -> str:
            rows, began = rng.choice(len(users), 3, replace=False), time.monotonic()
            try:
                found = features.online("bench", {"user_id": users[rows]})
                same = [same_column(found.column(name), expected.column(name).take(rows)) for name in expected.names]
                said = "right" if all(same) else "wrong"
            except FeatureError:
                said = "clear errors"
            except Exception:
                said = "other errors"
            counts["late"] += time.monotonic() - began > 11
            return said

        for n in range(number):
            fault = n % 50
            if fault == 0:
                proxy.flowing.clear()
            elif fault % 4 == 1:
                proxy.close()
            elif fault % 4 == 2:
                redis.Redis.from_url(url).flushall()
            else:
                proxy.cut, proxy.cuts = int(rng.integers(0, 3_000)), int(rng.integers(1, 4))
            counts["reads"] += 1
            counts[ask()] += 1
            if fault % 4 == 1:
                proxy = Proxy(proxy.server, proxy.port)
            proxy.cut = None
            proxy.flowing.set()
            counts["not right again"] += ask() != "right"
        proxy.close()
    return counts


def same_column(mine: Any, other: Any) -> bool:
    """Whether two columns hold the same; sums may differ in their last digits, being made in another order."""
    a, b = np.asarray(mine.values), np.asarray(other.values)
    lengths = mine.offsets is None or np.array_equal(mine.lengths, other.lengths)
    if not lengths or a.shape != b.shape:
        return False
    return np.allclose(a, b, rtol=1e-9, equal_nan=True) if a.dtype.kind == "f" else np.array_equal(a, b)


def counted(root: Path, work: Callable[[Path, int], dict[str, int]], number: int) -> dict[str, int]:
    """What the work counts, in a process of its own."""
    into = root / "counts.json"
    into.unlink(missing_ok=True)
    done(lambda: into.write_text(json.dumps(work(root, number))) and 0)
    found: dict[str, int] = json.loads(into.read_text()) if into.exists() else {"failed": 1}
    return found


def main() -> None:
    if not LOG.exists():
        sys.exit(f"no log at {LOG}; make one with: zoo demo")
    kills, reads, events, faults = (5, 2_000, 4_000, 60) if QUICK else (200, 100_000, 100_000, 1_000)
    import redis

    import zoo.consistency
    import zoo.stores  # noqa: F401

    asked, found = sys.argv[1:], {}
    with tempfile.TemporaryDirectory() as folder, redis_server(redis_program()) as url:

        def prepared(kind: str) -> Path:
            """A repository with the demo's log and an empty store."""
            root = Path(folder) / f"of_{kind}"
            where = url.removeprefix("redis://").partition("/")[0] if kind == "redis" else ""
            if not done(lambda: repository(root, where, root.name, OURS if kind == "redis" else SQLITE, 0) and 0):
                raise RuntimeError(f"the repository {root} could not be made")
            return root

        def empty(root: Path) -> None:
            redis.Redis.from_url(url).flushdb()
            for path in root.glob("online.db*"):
                path.unlink()

        parts: dict[str, Callable[[Path], dict[str, int]]] = {
            "copies": lambda root: killed_copies(root, lambda: empty(root), kills),
            "reads": lambda root: counted(root, cancelled_reads, reads),
            "writers": lambda root: counted(root, many_writers, events),
            "faults": lambda root: counted(root, redis_faults, faults),
        }
        for kind in ("redis", "sqlite"):
            for part, work in parts.items():
                if (kind, part) != ("sqlite", "faults") and (not asked or f"{part}-{kind}" in asked):
                    found[f"{part}-{kind}"] = work(prepared(kind))
                    print(json.dumps(found, indent=1), flush=True)
                    if not QUICK:
                        keep(f"{part}-{kind}", found[f"{part}-{kind}"])
    sys.exit(0 if all(map(good, found.values())) else 1)


def keep(part: str, counts: dict[str, int]) -> None:
    """Put a part's counts in the file beside those of other parts."""
    path = FOLDER / "faults_online.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    command, date = f"python tests/benchmarks/faults_online.py {part}", time.strftime("%Y-%m-%d", time.gmtime())
    path.write_text(
        json.dumps({**kept, part: {**counts, "command": command, "machine": machine(), "date": date}}, indent=1) + "\n"
    )


def good(c: dict[str, int]) -> bool:
    return (
        c.get("copies killed") == c.get("equal to a clean copy after a rerun")
        and c.get("events") == c.get("in the log once")
        and not any(c.get(bad, 0) for bad in BAD)
    )


if __name__ == "__main__":
    main()
