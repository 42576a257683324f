"""Row P19: the application of ``zoo serve`` behind uvicorn, as it is served, and behind granian (ASGI), from an environment of its own.

All servers run at once and are asked in turns, so that they meet the same machine. Granian runs as it comes and with what may be quicker
for one process (``SIDES``); each figure stands beside the better of both. Then each is tried for what the service promises of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import load
import predict_listeners
import psutil
from figures import QUICK, Figure
from predict_peers import SERVED, START, peer_python
from predict_service import Server, asking, project, quantile, serving

OURS = "zoo serve (uvicorn)"
SIDES = {
    "granian as it comes": (),
    "granian, one thread": ("--http", "1", "--no-ws", "--loop", "uvloop", "--runtime-mode", "st", "--runtime-threads", "1"),
}
"""Options of each; all have one process that answers, which is granian's own choice."""
TOGETHER = 16
"""Connections of the rate: each asks as soon as it is answered."""
SECONDS, ROUNDS = (1.0, 1) if QUICK else (5.0, 6)
SWITCH = 1.5
"""How many times better granian has to be at predictions before a change is worth what it takes away."""


@contextlib.contextmanager
def granian(root: Path, *options: str, scheme: str = "http") -> Iterator[Server]:
    """The same application, served by granian until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [peer_python("granian"), "-m", "granian", "--interface", "asgi", "--factory", "--working-dir", str(SERVED)]
    command += ["--port", str(port), *options, "serve_granian:application"]
    log = root / f"granian-{port}.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "BENCH_ROOT": str(root)}) as own,
    ):
        try:
            until = time.monotonic() + START
            while not predict_listeners.alive(port, scheme == "https"):
                if own.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"granian does not answer: {log.read_text()[-4_000:]}")
                time.sleep(0.2)
            yield Server(port, psutil.Process(own.pid))
        finally:
            own.terminate()
            try:
                own.wait(20)
            except subprocess.TimeoutExpired:
                for each in psutil.Process(own.pid).children():
                    each.send_signal(signal.SIGKILL)
                own.kill()


@dataclass(frozen=True)
class Route:
    name: str
    requests: list[bytes]


ROUTES = (Route("/v1/predict of one user", asking()), Route("/health/live, an empty route", [load.get("/health/live")]))


async def _one_by_one(ports: dict[str, int], requests: list[bytes], seconds: float) -> dict[str, list[float]]:
    """Times of one request to each server in turn, over kept connections."""
    connections = {name: load.Connection(port) for name, port in ports.items()}
    seen: dict[str, list[float]] = {name: [] for name in ports}
    until, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        for name, connection in connections.items():
            began = time.perf_counter()
            status, _ = await connection.ask(requests[number % len(requests)])
            assert status == 200, (name, status)
            seen[name].append(time.perf_counter() - began)
        number += 1
    for connection in connections.values():
        connection.close()
    return seen


def _rates(ports: dict[str, int], requests: list[bytes]) -> dict[str, list[float]]:
    """Answers a second of each, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            seen = asyncio.run(load.closed(port, requests, TOGETHER, SECONDS))
            assert set(seen.times) == {200}, (name, seen.times.keys())
            assert not seen.failed, (name, seen.failed)
            rates[name].append(seen.rate())
    return rates


def _overload(ports: dict[str, int]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """At three times what each answers to 64 connections: answers a second by round, and times of what was refused."""
    goodput: dict[str, list[float]] = {name: [] for name in ports}
    refused: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            peak = asyncio.run(load.closed(port, asking(), 64, SECONDS)).rate()
            seen = asyncio.run(load.steady(port, asking(), 3 * peak, SECONDS))
            goodput[name].append(seen.rate())
            refused[name] += seen.times.get(503, [])
    return goodput, refused


def _figure(id: str, what: str, found: dict[str, float], unit: str, *, lower: bool, decides: bool = False) -> Figure:
    """Ours beside the better of granian's. decides: whether it bears on which server it is."""
    others = {name: value for name, value in found.items() if name != OURS}
    peer = (min if lower else max)(others, key=lambda name: others[name])
    better = found[OURS] / found[peer] if lower else found[peer] / found[OURS]
    told = "; ".join(f"{name} {value:.4g} {unit}" for name, value in found.items())
    return Figure(
        id=id,
        what=f"{what} ({told})",
        ours=found[OURS],
        unit=unit,
        peer=found[peer],
        peer_name=peer,
        lower_is_better=lower,
        must=f"granian at most {SWITCH} times better" if decides else "",
        reached=better <= SWITCH if decides else None,
        why=told,
    )


def p19() -> list[Figure]:
    """Times one by one, rates of 16 connections, overload, and what is promised of connections."""
    figures: list[Figure] = []
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(project())
        ports = {OURS: stack.enter_context(serving(root)).port}
        for name, options in SIDES.items():
            ports[name] = stack.enter_context(granian(root, *options)).port
        for port in ports.values():
            asyncio.run(load.closed(port, asking(), 4, SECONDS))  # warm
        ids: Iterator[str] = iter(["P19", *(f"P19{letter}" for letter in "bcdefgh")])
        for route in ROUTES:
            main = route is ROUTES[0]
            times = asyncio.run(_one_by_one(ports, route.requests, SECONDS * ROUNDS))
            for name, q in (("p50", 0.5), ("p99", 0.99)):
                found = {side: quantile(each, q) * 1e3 for side, each in times.items()}
                what = f"{route.name}, one by one, {name}"
                figures.append(_figure(next(ids), what, found, "ms", lower=True, decides=main and q == 0.5))
            rate = {side: statistics.median(each) for side, each in _rates(ports, route.requests).items()}
            what = f"{route.name}, {TOGETHER} connections, median of {ROUNDS} rounds"
            figures.append(_figure(next(ids), what, rate, "a second", lower=False, decides=main))
        goodput, refused = _overload(ports)
        good = {side: statistics.median(each) for side, each in goodput.items()}
        late = {side: quantile(each or [float("inf")], 0.99) * 1e3 for side, each in refused.items()}
        what = "/v1/predict at 3 times each server's peak"
        figures.append(_figure(next(ids), f"{what}, answered", good, "a second", lower=False))
        figures.append(_figure(next(ids), f"{what}, p99 of a refusal", late, "ms", lower=True))
    return [*figures, *_promises()]


def _promises() -> list[Figure]:
    """What each does of what the service promises of connections, tried."""
    sides: dict[str, Callable[[Path], contextlib.AbstractContextManager[Server]]] = {
        OURS: serving,
        "granian": lambda root: granian(root, *predict_listeners.options(root), scheme="https"),
    }
    kept: dict[str, dict[str, predict_listeners.Tried]] = {}
    with project() as root:
        key = predict_listeners.secured(root)
        for name, started in sides.items():
            with started(root) as server:
                kept[name] = predict_listeners.tried(server.port, server.process, key)
        with granian(root, *predict_listeners.options(root), "--backpressure", "1", scheme="https") as server:
            own = predict_listeners.busy(server.port, key)
    for name, each in kept.items():
        for what, found in each.items():
            print(f"{name}: {what}: {'yes' if found.kept else 'no'} ({found.seen})", flush=True)
    print(f"granian --backpressure 1: a second request: {own.seen}", flush=True)
    ours, peer = ({what: found.seen for what, found in each.items() if found.kept} for each in kept.values())
    beyond = sorted(peer.keys() - ours.keys())
    lacks = {what: kept["granian"][what].seen for what in ours if what not in peer}
    promised = kept[OURS].keys() - set(predict_listeners.BEYOND)
    return [
        Figure(
            id="P19i",
            what=f"of {len(promised)} things promised of connections, kept (granian lacks "
            f"{', '.join(lacks) or 'none'}; has beyond: {', '.join(beyond) or 'nothing'})",
            ours=len(promised & ours.keys()),
            unit="things",
            peer=len(promised & peer.keys()),
            peer_name="granian with options for each that it has one for",
            lower_is_better=False,
            must="all",
            reached=promised <= ours.keys(),
            why=json.dumps({name: {what: found.seen for what, found in each.items()} for name, each in kept.items()})
            + f"; granian --backpressure 1, a second request: {own.seen}",
        )
    ]
