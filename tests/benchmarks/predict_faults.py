"""Rows P8 and P9: answers while members fail, are late or give no number, and while the online store fails, each by a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from figures import QUICK, Figure
from predict_service import USERS, project

sys.path.insert(0, str(Path(__file__).parents[1]))

from proxy import Proxy
from services import redis_program

DEADLINE = float(os.environ.get("BENCH_DEADLINE", "0.25"))
"""Seconds; five members of the demo take about a tenth of that on idle cores."""
HANG = 2.0
"""Seconds after a deadline from which on an answer counts as a hang."""
DAY = 86_400_000_000


@dataclass(frozen=True)
class Faulty:
    """A member that fails in one way."""

    how: str
    real: Any

    def predict(self, batch: Any) -> Any:
        if self.how == "fails":
            raise ZeroDivisionError("as it was told to")
        if self.how == "late":
            time.sleep(1.5 * DEADLINE)
        scores = self.real.predict(batch)
        return np.full_like(scores, np.nan) if self.how == "NaN" else scores

    def save(self) -> Any:
        return self.real.save()


def p8() -> list[Figure]:
    """Every non-empty subset of the members failing, late, or giving NaN."""
    import logging

    from zoo.policy import Policy
    from zoo.predictor import Predictor
    from zoo.scoring import Scorer

    logging.getLogger("zoo.scoring").setLevel(logging.CRITICAL)
    times = 2 if QUICK else 20
    bad: Counter[str] = Counter()
    slowest, asked = 0.0, 0
    with project() as root:
        predictor = replace(Predictor.load("churn", root), policy=Policy(at_least=0))
        predictor.warm()
        ensemble, fallbacks = predictor.ensemble, predictor.fallbacks
        if fallbacks is None:
            raise SystemExit(f"{predictor.version.reference} has no fallbacks; train it again")
        names, bound = predictor.members, predictor.policy.calibration_error
        for how in ("fails", "late", "NaN"):
            for size in range(1, len(names) + 1):
                for lost in combinations(names, size):
                    members = tuple(
                        replace(m, fitted=Faulty(how, m.fitted)) if m.name in lost else m
                        for m in ensemble.members  # type: ignore[union-attr]
                    )
                    faulty = replace(predictor, ensemble=replace(ensemble, members=members), _scorer=Scorer())  # type: ignore[arg-type]
                    for _ in range(times):
                        began = time.perf_counter()
                        row = faulty.predict(users=[USERS[asked % 1_000]], deadline=DEADLINE).to_pylist()[0]
                        over = time.perf_counter() - began - DEADLINE
                        asked, slowest = asked + 1, max(slowest, over)
                        bad["late"] += over > 0.02
                        bad["named wrongly"] += not set(lost) <= set(row["missing"])
                        bad["no score"] += not 0 < row["score"] < 1
                        bad["others missing"] += set(row["missing"]) > set(lost)
                        stated = fallbacks.held_out["+".join(row["missing"])]
                        bad["no log-loss"] += not stated["log_loss"] > 0
                        bad["calibration not told"] += row["calibrated"] is not (stated["ece"] <= bound)
    loss = {name: each["log_loss"] for name, each in fallbacks.held_out.items()}
    error = {name: each["ece"] for name, each in fallbacks.held_out.items()}
    wrong = bad["late"] + bad["named wrongly"] + bad["no score"] + bad["no log-loss"] + bad["calibration not told"]
    beyond_bound = [name for name, each in error.items() if each > bound]
    after = f"slowest {slowest * 1e3:+.0f} ms after a deadline of {DEADLINE * 1e3:.0f} ms"
    told = f"{asked} answers, {2 ** len(names) - 1} subsets x 3 faults; {after}"
    single, beyond = (
        max(names, key=loss.__getitem__),
        max((n for n in loss if 1 <= n.count("+") < len(names) - 1), key=loss.__getitem__),
    )
    return [
        Figure(
            id="P8",
            what=f"answers late, naming the wrong members, or without a score ({told})",
            ours=wrong,
            unit="answers",
            must="0: each within deadline + 20 ms, missing ones named, log-loss and calibration stated",
            reached=wrong == 0,
            why=f"{dict(bad)}",
        ),
        Figure(
            id="P8b",
            what=f"held-out log-loss without the member that matters most ({single}); all: {_rounded(loss)}",
            ours=loss[single],
            unit="log-loss",
            peer=loss[""],
            peer_name="all members",
        ),
        Figure(
            id="P8c",
            what=f"held-out log-loss of the worst loss of several but not all ({beyond}), against the mean outcome",
            ours=loss[beyond],
            unit="log-loss",
            peer=loss["+".join(names)],
            peer_name="no member",
        ),
        Figure(
            id="P8d",
            what=f"largest calibration error of a combination on held-out rows (ten bins); all: {_rounded(error)}",
            ours=max(error.values()),
            unit="probability",
            peer=error[""],
            peer_name="all members",
            must=f"within the stated bound of {bound:g}, or said in the answer to be beyond",
            reached=not bad["calibration not told"],
            why=f"beyond it: {', '.join(beyond_bound) or 'none'}; {bad['calibration not told']} answers did not say so",
        ),
    ]


def _rounded(values: dict[str, float]) -> str:
    return json.dumps({name or "(none)": round(value, 4) for name, value in values.items()})


@contextlib.contextmanager
def server(port: int = 0) -> Iterator[Callable[[], int]]:
    """A real Redis that holds nothing on disk; what is yielded starts it anew, empty, on its port, and returns that."""
    running: list[subprocess.Popen[bytes]] = []
    folder = tempfile.mkdtemp(prefix="zoo-redis-")

    def restart() -> int:
        nonlocal port
        import redis

        stop()
        if not port:
            import socket

            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        command = [str(redis_program()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(redis.exceptions.RedisError), redis.Redis(port=port) as client:
                client.ping()
                return port
            time.sleep(0.01)
        raise SystemExit("redis-server does not answer")

    def stop() -> None:
        while running:
            process = running.pop()
            process.send_signal(signal.SIGKILL)
            process.wait()

    try:
        yield restart
    finally:
        stop()
        shutil.rmtree(folder, ignore_errors=True)


FAULTS = ("refuse", "reset", "delay", "truncated", "restart")


def p9() -> list[Figure]:
    """The store refuses, resets in the middle of a reply, is 10 ms to 5 s late, breaks off, or comes back empty."""
    import logging

    from zoo.features import Features
    from zoo.policy import Policy
    from zoo.predictor import Predictor
    from zoo.scoring import Scorer

    logging.disable(logging.ERROR)
    number = 20 if QUICK else 1_000
    found: dict[str, Counter[str]] = {}
    with project() as root, server() as restart:
        port = restart()
        proxy = Proxy(("127.0.0.1", port))
        settings = (root / "feature_store.yaml").read_text().partition("online_store:")[0]
        store = f'online_store:\n  type: zoo.stores.RedisEventOnlineStore\n  connection_string: "127.0.0.1:{proxy.port}"\n'
        (root / "feature_store.yaml").write_text(settings + store)
        features = Features.open(root)
        features.materialize()
        predictor = Predictor.load("churn", root, features=features)
        for policy in ("cold", "last_known"):
            for fault in FAULTS:
                own = replace(predictor, policy=Policy(at_least=0, store=policy), _scorer=Scorer())  # type: ignore[arg-type]
                found[f"{fault}, {policy}"] = _faults(own, proxy, restart, fault, number // 2)
                print(fault, policy, dict(found[f"{fault}, {policy}"]), flush=True)
        proxy.close()
    figures = []
    for at, fault in enumerate(FAULTS):
        counts = found[f"{fault}, cold"] + found[f"{fault}, last_known"]
        share = counts["in time"] / counts["requests"]
        wrong = counts["hangs"] + counts["fresh and not so"]
        figures.append(
            Figure(
                id=f"P9{'abcde'[at]}",
                what=f"{fault}: answered within deadline + 50 ms, of {counts['requests']} requests (policies cold and last_known, "
                f"{counts['fresh']} fresh, {counts['last_known']} last known, {counts['cold']} cold)",
                ours=share,
                unit="share",
                lower_is_better=False,
                must="at least 0.999, 0 hangs, never fresh when stale",
                reached=share >= 0.999 and not wrong,
                why=f"{dict(counts)}, deadline {DEADLINE * 1e3:.0f} ms",
            )
        )
    return figures


def _faults(predictor: Any, proxy: Proxy, restart: Callable[[], int], fault: str, number: int) -> Counter[str]:
    """Counts of ``number`` requests under a fault, of a store that was well before; the log goes on meanwhile, past the store."""
    from zoo.errors import ZooError

    features, policy = predictor.features, predictor.policy.store
    log, rng, counts = features.reader.log, np.random.default_rng(0), Counter[str]()
    view = features.reader.view()
    users = view.ids("user_id", np.arange(2, min(view.size("user_id"), 402)).astype(np.int32)).to_pylist()
    for user in users[:200]:  # half of them are known from before
        predictor.predict(users=[user])
    newest = {u: int(t) for u, t in zip(users, features.online(predictor.service, {"user_id": users}).newest)}
    clock = features.reader.now()
    for n in range(number):
        user = users[int(rng.integers(len(users)))]
        if n % 10 == 0:  # written to the log, of which the store hears when it is read next
            event = {
                "event_id": [f"{fault}-{policy}-{n}"],
                "user_id": [user],
                "event_type": ["purchase"],
                "time": [clock + n + 1],
            }
            log.append(pa.table({**event, "item_id": [1]}))
            newest[user] = clock + n + 1
        _break(proxy, restart, fault, n, rng)
        began = time.perf_counter()
        try:
            row = predictor.predict(users=[user], at=clock + n + 2, deadline=DEADLINE).to_pylist()[0]
        except ZooError as error:
            counts[f"error {type(error).__name__}"] += 1
            row = None
        over = time.perf_counter() - began - DEADLINE
        _mend(proxy, fault)
        counts["requests"] += 1
        counts["hangs"] += over > HANG
        if row is None:
            continue
        counts["in time"] += over <= 0.05
        counts[row["features"]] += 1
        age = row["newest_event_age"]
        true = round(age * 1e6) == clock + n + 2 - newest[user] if age is not None else newest[user] < 0
        counts["fresh and not so"] += row["features"] == "fresh" and not (true and row["known"])
        counts["fresh and not so"] += row["features"] != "fresh" and row["known"] is not None
    return counts


def _break(proxy: Proxy, restart: Callable[[], int], fault: str, n: int, rng: np.random.Generator) -> None:
    if fault == "refuse":
        proxy.close()
    elif fault in ("reset", "truncated"):
        proxy.cut, proxy.cuts, proxy.politely = int(rng.integers(0, 200)), 100, fault == "truncated"
    elif fault == "delay":
        proxy.delay = float(np.exp(rng.uniform(np.log(0.01), np.log(5.0))))
    elif n % 50 == 0:
        proxy.drop()
        restart()


def _mend(proxy: Proxy, fault: str) -> None:
    if fault == "refuse":
        proxy.open()
    proxy.cut, proxy.cuts, proxy.delay = None, 0, 0.0
