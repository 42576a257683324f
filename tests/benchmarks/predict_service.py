"""Rows P3, P6 and P15: what HTTP adds, overload and a soak, each of ``zoo serve`` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import psutil
from figures import QUICK, Figure

REPO = Path(os.environ.get("BENCH_REPO", Path(__file__).parents[2] / "feature_repo"))
"""A project with a champion of churn, as ``make demo`` leaves it; it is copied, never written to."""
USERS = list(range(1, 2_001))


@dataclass(frozen=True)
class Server:
    port: int
    process: psutil.Process


@contextlib.contextmanager
def project(*, cache: bool = False, reload: float = 0) -> Iterator[Path]:
    """A copy of the demo's project. cache: with what its training runs fitted. reload: seconds between looks at the registry; 0: never."""
    if not (REPO / "data" / "registry.db").exists():
        raise SystemExit(f"{REPO} has no registered models; make some with `make demo`, or name another project in BENCH_REPO")
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
        root = Path(folder) / "repo"
        shutil.copytree(REPO, root, ignore=shutil.ignore_patterns("source", *(() if cache else ("cache",))))
        with (root / "zoo.toml").open("a") as file:
            file.write(f"\n[service]\nreload = {reload}\naccess_log = false\n")
        yield root


@contextlib.contextmanager
def serving(root: Path, *options: str) -> Iterator[Server]:
    """``zoo serve churn`` until the block ends."""
    command = [sys.executable, "-m", "zoo", "--repo", str(root), "serve", "churn", "--port", "0", "--json", *options]
    log = (root / "serve.log").open("w")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            for line in process.stdout:
                text += line
                if line.startswith("}"):
                    break
            if not text:
                raise SystemExit((root / "serve.log").read_text())
            yield Server(int(json.loads(text)["url"].rpartition(":")[2]), psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def asking(users: int = 1) -> list[bytes]:
    return [load.post("/v1/predict", {"model": "churn", "users": USERS[at : at + users]}) for at in range(0, 1_000, users)]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def p3() -> list[Figure]:
    """What HTTP adds to a prediction: p50 over HTTP, less in process, less an empty route of the same server."""
    from zoo.predictor import Predictor

    seconds, repeats = (2, 2) if QUICK else (10, 5)
    with project() as root, serving(root) as server:
        predictor = Predictor.load("churn", root)
        predictor.warm()
        added = []
        for _ in range(repeats):
            own, http, empty = asyncio.run(_in_turn(predictor, server.port, seconds))
            parts = [statistics.median(each) * 1e3 for each in (http, own, empty)]
            added.append((parts[0] - parts[1] - parts[2], parts))
    best, (over, within, nothing) = min(added)
    why = f"p50 over HTTP {over:.2f} ms, in process {within:.2f} ms, an empty route {nothing:.2f} ms"
    return [
        Figure(
            id="P3",
            what=f"HTTP over in-process, p50, less an empty route ({why})",
            ours=best,
            unit="ms",
            must="at most 1 ms",
            reached=best <= 1,
            why=why,
        )
    ]


async def _in_turn(predictor: Any, port: int, seconds: float) -> list[list[float]]:
    """Times of the same prediction in process and over HTTP and of an empty route, in turn, so that all meet the same machine."""
    requests, empty, connection = asking(), load.get("/health/live"), load.Connection(port)
    seen: list[list[float]] = [[], [], []]
    until, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        begun = [time.perf_counter()]
        predictor.predict(users=[USERS[number % 1_000]])
        begun.append(time.perf_counter())
        for request in (requests[number % 1_000], empty):
            status, _ = await connection.ask(request)
            assert status == 200
            begun.append(time.perf_counter())
        for times, first, last in zip(seen, begun, begun[1:]):
            times.append(last - first)
        number += 1
    connection.close()
    return seen


def p6() -> list[Figure]:
    """Goodput at three times the peak, and how soon the rest is refused.

    Peak and overload take turns, and each overload is held against the peaks before and after it: the machine's speed drifts.
    """
    seconds, rounds = (1, 2) if QUICK else (5, 6)
    with project() as root, serving(root) as server:

        def peak_of(connections: int) -> float:
            return asyncio.run(load.closed(server.port, asking(), connections, seconds)).rate()

        peak_of(4)  # warm
        # as many at once as are let in: only then are batches as large as they become under overload
        best = max((4, 16, 32, 64, 128), key=peak_of)
        peaks, overs = [peak_of(best)], []
        for _ in range(rounds):
            overs.append(asyncio.run(load.steady(server.port, asking(), 3 * peaks[-1], seconds)))
            peaks.append(peak_of(best))
    shares = [2 * over.rate() / (first + then) for over, first, then in zip(overs, peaks, peaks[1:])]
    share, peak = statistics.median(shares), statistics.median(peaks)
    refused = [time for over in overs for time in over.times.get(503, [])] or [0.0]
    others = {status for over in overs for status in over.times if status not in (200, 503)}
    late, slowest, typical = quantile(refused, 0.99) * 1e3, max(refused) * 1e3, quantile(refused, 0.5) * 1e3
    why = f"{best} connections; rounds {', '.join(f'{each:.2f}' for each in shares)}; {len(refused)} refused, p50 {typical:.1f} ms, "
    why += f"slowest {slowest:.1f} ms; broken {sum(over.failed for over in overs)}, others {sorted(others)}"
    return [
        Figure(
            id="P6",
            what=f"goodput at 3 times overload, of own peak of {peak:.0f} a second ({why})",
            ours=share,
            unit="share",
            lower_is_better=False,
            interval=(min(shares), max(shares)),
            must="at least 0.9",
            reached=share >= 0.9,
            why=f"goodput {statistics.median(over.rate() for over in overs):.0f} a second; {why}",
        ),
        Figure(
            id="P6b",
            what=f"time to refuse at 3 times overload, p99 of {len(refused)} refused (slowest {slowest:.1f} ms)",
            ours=late,
            unit="ms",
            must="within 50 ms",
            reached=late <= 50,
            why=why,
        ),
    ]


def p15() -> list[Figure]:
    """Half an hour at 70 % of the peak: resident memory and descriptors, the last third against the second."""
    minutes = 1 if QUICK else 30
    with project() as root, serving(root) as server:
        peak = max(asyncio.run(load.closed(server.port, asking(), n, 3)).rate() for n in (2, 4, 8))
        samples: list[tuple[float, int]] = []

        async def soak() -> load.Seen:
            running = asyncio.create_task(load.steady(server.port, asking(), 0.7 * peak, minutes * 60))
            while not running.done():
                samples.append((server.process.memory_info().rss / 2**20, server.process.num_fds()))
                await asyncio.sleep(1)
            return await running

        seen = asyncio.run(soak())
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    grown = statistics.median(m for m, _ in last) / statistics.median(m for m, _ in middle) - 1
    descriptors = max(d for _, d in last) - max(d for _, d in middle)
    answered = {status: len(times) for status, times in seen.times.items()}
    why = f"{statistics.median(m for m, _ in last):.0f} MiB, descriptors {descriptors:+d}, statuses {answered}, broken {seen.failed}"
    return [
        Figure(
            id="P15",
            what=f"resident memory grown from the second to the last third of {minutes} minutes at 70 % ({why})",
            ours=grown * 100,
            unit="%",
            must="flat: at most 2 %, and no more descriptors",
            reached=grown <= 0.02 and descriptors <= 0,
            why=why,
        )
    ]
